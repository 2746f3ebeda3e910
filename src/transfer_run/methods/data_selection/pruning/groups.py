"""Which groups of a source data set (classes, or clusters) a target uses: scores of groups, and the groups to keep.

target image ──> surrogate ──> a source group        score of a group: how many target images map to it
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def label_mapping(logits: NDArray[np.floating]) -> Ints:
    """LM: hits of each source class, s(c) = #{j : argmax_c g(x_j) = c}.

    Args:
        logits: the surrogate's, of the target images, (n, K).

    Returns:
        Counts (K,) that sum to n.
    """
    return np.bincount(logits.argmax(1), minlength=logits.shape[1])


def centroids(features: NDArray[np.floating], groups: Ints, count: int) -> Floats:
    """Mean feature of each group (K, d); not-a-number for a group without rows.

    Args:
        features: of the source images (N, d).
        groups: of each source image (N,); negative: in none.
        count: K.
    """
    inside = groups >= 0
    sums = np.zeros((count, features.shape[1]))
    np.add.at(sums, groups[inside], features[inside])
    sizes = np.bincount(groups[inside], minlength=count)[:, None]
    return np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)


def nearest(features: NDArray[np.floating], centres: Floats, chunk: int = 4096) -> Ints:
    """The group whose centre is nearest in the Euclidean sense, for each row (n,); ties go to the lower group."""
    valid = np.flatnonzero(np.isfinite(centres).all(1))
    found = np.empty(len(features), dtype=np.int64)
    for begin in range(0, len(features), chunk):
        part = features[begin : begin + chunk].astype(np.float64)
        # |h - mu|^2 without |h|^2, which is the same for all groups
        distance = (centres[valid] ** 2).sum(1) - 2 * part @ centres[valid].T
        found[begin : begin + chunk] = valid[distance.argmin(1)]
    return found


def feature_mapping(features: NDArray[np.floating], centres: Floats) -> Ints:
    """FM: hits of each source group, s(c) = #{j : argmin_c |h(x_j) - mu_c| = c}.

    Args:
        features: of the target images (n, d).
        centres: of the source groups (K, d), see `centroids`.

    Returns:
        Counts (K,) that sum to n.
    """
    return np.bincount(nearest(features, centres), minlength=len(centres))


def class_closeness(centres: Floats, target_centres: Floats) -> Floats:
    """Minus the mean distance from each source centre (K, d) to the target classes' centres (C, d): (K,).

    The paper's comparison of class means; groups without rows come last (minus infinity).
    """
    target = target_centres[np.isfinite(target_centres).all(1)]
    distance = np.stack([np.linalg.norm(centres - centre, axis=1) for centre in target]).mean(0)
    return -np.where(np.isfinite(distance), distance, np.inf)


def kept_number(count: int, pruning_ratio: float, keep: int | None) -> int:
    """How many of `count` are kept: `keep`, else round((1 - ratio) count), halves up; at least one."""
    wanted = keep if keep is not None else math.floor((1 - pruning_ratio) * count + 0.5 + 1e-9)
    return max(1, min(count, wanted))


def best(scores: NDArray[np.generic], number: int, *, reverse: bool = False) -> Ints:
    """The `number` highest scores' places, best first; ties go to the lower place.

    Args:
        reverse: the lowest ones, for the ablation that keeps the least used groups.
    """
    values = scores.astype(np.float64)
    return np.argsort(values if reverse else -values, kind="stable")[:number]

"""TMI: the entropy of the features within each class (Xu and Kang, ICCV 2023, arXiv 2308.05986)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import digamma, gammaln

from transfer_run.methods.transfer_scores.classes import Array, Labels

Norm = Literal["max", "euclidean"]
ROWS = 512  # of a class at a time, so that the distances of a large class need not stand in memory together


@dataclass(frozen=True)
class ClassEntropies:
    """Entropies of the features within the classes 0 to the largest label.

    Attributes:
        entropies: (C,) nats; 0 for a class of no or one sample, infinite for one of 2 to k samples.
        counts: (C,) samples of each class.
        floored: share of the distances that lay below the floor. Near 1 the score says nothing but the width D.
    """

    entropies: Array
    counts: NDArray[np.int64]
    floored: float


def class_entropies(
    features: Array, labels: Labels, *, k: int = 3, norm: Norm = "max", min_distance: float = 1.0
) -> ClassEntropies:
    """Kozachenko-Leonenko estimate of H(Z | Y = c) for each class.

    `H_c = psi(n_c) - psi(k) + (D / n_c) sum_i log(2 eps_i)`, eps_i the distance of sample i to its k-th nearest
    neighbour within the class, at least `min_distance`; the Euclidean norm adds the log-volume of its unit ball.

    Args:
        features: (N, D), used as they are: neither scaled nor reduced (the entropy does not depend on their mean).
        labels: (N,), from 0.
    """
    width, counts = features.shape[1], np.bincount(labels)
    ball = 0.0 if norm == "max" else width / 2 * np.log(np.pi) - gammaln(width / 2 + 1)
    entropies, below, distances = np.zeros(len(counts)), 0, 0
    for label, count in enumerate(counts):
        if count < 2:
            continue
        if count <= k:
            entropies[label] = np.inf
            continue
        nearest = kth_distances(features[labels == label], k, norm)
        below, distances = below + int((nearest < min_distance).sum()), distances + count
        logs = np.log(2 * np.maximum(nearest, min_distance))
        entropies[label] = digamma(count) - digamma(k) + ball + width * logs.mean()
    return ClassEntropies(entropies, counts, below / max(1, distances))


def kth_distances(rows: Array, k: int, norm: Norm) -> Array:
    """Distance (n,) of each row of (n, D) to its k-th nearest other one; duplicates are neighbours at distance 0."""
    metric = "chebyshev" if norm == "max" else "euclidean"

    def portion(start: int) -> Array:
        return np.partition(cdist(rows[start : start + ROWS], rows, metric), k)[:, k]  # position 0 is the row itself

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # scipy computes distances outside the interpreter's lock
        return np.concatenate(list(threads.map(portion, range(0, len(rows), ROWS))))


def tmi(
    features: Array,
    labels: Labels,
    *,
    k: int = 3,
    norm: Norm = "max",
    min_distance: float = 1.0,
    divide_by_classes: bool = True,
) -> float:
    """Intra-class variance as an entropy, H(Z | Y); higher is better.

    Args:
        features: (N, D) float64.
        labels: (N,) from 0.
        k: which neighbour's distance is taken.
        min_distance: floor of the distances. Features of small scale lie below it altogether.
        divide_by_classes: True: the released code's value, the mean over the classes of finite entropy of
            (n_c / N) H_c; False: the paper's H(Z | Y), their sum. Both rank models alike.
    """
    found = class_entropies(features, labels, k=k, norm=norm, min_distance=min_distance)
    return conditional_entropy(found, divide_by_classes=divide_by_classes)


def conditional_entropy(found: ClassEntropies, *, divide_by_classes: bool = True) -> float:
    """The score from the classes' entropies; classes of infinite entropy (2 to k samples) are left out."""
    finite = np.isfinite(found.entropies)
    total = float((found.counts / found.counts.sum() * np.where(finite, found.entropies, 0.0)).sum())
    return total / max(1, int(finite.sum())) if divide_by_classes else total

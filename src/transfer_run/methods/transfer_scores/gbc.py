"""GBC: how far the classes overlap as Gaussians (Pandy et al., CVPR 2022, arXiv 2111.12780)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.decomposition import PCA

from transfer_run.methods.transfer_scores.classes import Array, Labels, class_rows, without_empty_directions

SMALLEST_VARIANCE = 1e-4


def reduced(features: Array, components: int | None) -> Array:
    """The features (N, D) on their first principal components, (N, min(components, N, D)); None: as they are."""
    if components is None:
        return features
    scores: Array = PCA(min(components, *features.shape), svd_solver="full").fit_transform(
        without_empty_directions(features)
    )
    return scores


def gbc(
    features: Array,
    labels: Labels,
    *,
    kind: Literal["spherical", "diagonal"] = "spherical",
    pca: int | None = 64,
    logdet_times_dim: bool = True,
) -> float:
    """Minus the sum of Bhattacharyya coefficients over ordered pairs of classes; -C(C-1) to 0, higher is better.

    Args:
        features: (N, D) float64.
        labels: (N,).
        kind: `diagonal`: a variance for each dimension; `spherical`: their mean for all dimensions.
        pca: dimensions kept (fewer when N or D is smaller); None: all, unrotated.
        logdet_times_dim: False counts the log-determinant of a spherical variance once, not D times, as the released
            code does.
    """
    rows = class_rows(reduced(features, pca), labels)
    means = np.stack([r.mean(0) for r in rows])
    variances = np.stack([np.maximum(r.var(0), SMALLEST_VARIANCE) for r in rows])
    width = means.shape[1]
    logdets = 1.0
    if kind == "spherical":
        variances = variances.mean(1, keepdims=True)
        logdets = width if logdet_times_dim else 1.0
    overlap = 0.0
    for a in range(len(rows)):  # one class against all: (C, D) at a time
        shared = (variances + variances[a]) / 2
        apart = ((means - means[a]) ** 2 / shared).sum(1) / 8
        ratio = np.log(shared) - (np.log(variances) + np.log(variances[a])) / 2
        overlap += float(np.exp(-apart - logdets * ratio.sum(1) / 2).sum()) - 1.0  # less the class itself
    return -overlap

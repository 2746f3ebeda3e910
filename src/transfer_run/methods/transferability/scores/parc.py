"""PARC: do samples that differ in features differ in labels? (Bolya et al., NeurIPS 2021, arXiv 2111.06977)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from transfer_run.methods.transferability.scores.classes import Array, Labels
from transfer_run.methods.transferability.scores.gbc import reduced

DECIMALS = 12  # distances equal but for round-off must stay ties


def parc(features: Array, labels: Labels, *, pca: int | None = None) -> float:
    """100 times the rank correlation of the pairs' distances in features and in labels; -100 to 100, higher is better.

    Takes memory of order N^2; the paper probes 500 samples, balanced over the classes.

    Args:
        features: (N, D) float64; each column is standardised. A row without variation correlates with none.
        labels: (N,); the distance of two of them is 0 or 1.
        pca: reduce the features to so many dimensions first.
    """
    pairs = np.triu_indices(len(labels), 1)
    apart = (labels[:, None] != labels)[pairs].astype(np.float64)
    distances = np.round(1 - _row_correlations(_standardised(reduced(features, pca)))[pairs], DECIMALS)
    return 100 * _correlation(rankdata(distances), rankdata(apart))


def _standardised(features: Array) -> Array:
    deviation = features.std(0)
    return (features - features.mean(0)) / np.where(deviation > 0, deviation, 1.0)


def _row_correlations(features: Array) -> Array:
    """Pearson correlations (N, N) of the rows of (N, D)."""
    rows = features - features.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length > 0, length, 1.0)
    return rows @ rows.T


def _correlation(a: Array, b: Array) -> float:
    """Pearson correlation of two vectors; 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0

"""PARC: do samples that differ in features differ in labels? (Bolya et al., NeurIPS 2021, arXiv 2111.06977)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from transfer_run.methods.transfer_scores.classes import Array, Labels, one_hot
from transfer_run.methods.transfer_scores.gbc import reduced

DECIMALS = 12  # distances equal but for round-off must stay ties


def parc(features: Array, labels: Labels, *, pca: int | None = None, ties: bool = True) -> float:
    """100 times the rank correlation of the pairs' distances in features and in labels; -100 to 100, higher is better.

    Takes memory of order N^2; the paper probes 500 samples, balanced over the classes.

    Args:
        features: (N, D) float64; each column is standardised. A row without variation correlates with none.
        labels: (N,); the distance of two of them is 0 or 1.
        pca: reduce the features to so many dimensions first.
        ties: pairs of other classes are all as far apart; False: as in the authors' code, whose correlations of one-hot
            rows split them by round-off.
    """
    pairs = np.triu_indices(len(labels), 1)
    apart = (labels[:, None] != labels)[pairs].astype(np.float64)
    distances = np.round(1 - row_correlations(standardised(reduced(features, pca)))[pairs], DECIMALS)
    if not ties:
        apart = 1 - np.asarray(np.corrcoef(one_hot(labels)))[pairs]
    return 100 * correlation(rankdata(distances), rankdata(apart))


def standardised(features: Array) -> Array:
    deviation = features.std(0)
    return (features - features.mean(0)) / np.where(deviation > 0, deviation, 1.0)


def row_correlations(features: Array) -> Array:
    """Pearson correlations (N, N) of the rows of (N, D)."""
    rows = features - features.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length > 0, length, 1.0)
    return rows @ rows.T


def correlation(a: Array, b: Array) -> float:
    """Pearson correlation of two vectors; 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0

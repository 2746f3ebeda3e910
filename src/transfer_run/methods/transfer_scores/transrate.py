"""TransRate: the features' coding rate less that within classes (Huang et al., ICML 2022, arXiv 2106.09362)."""

from __future__ import annotations

import numpy as np

from transfer_run.methods.transfer_scores.classes import Array, Labels, class_rows


def coding_rate(rows: Array, epsilon: float = 1e-4) -> float:
    """1/2 logdet(I + Z^T Z / (n epsilon)) of the rows Z (n, D), in nats."""
    gram = rows.T @ rows if rows.shape[1] <= len(rows) else rows @ rows.T  # both have the same determinant
    return float(np.linalg.slogdet(np.eye(len(gram)) + gram / (len(rows) * epsilon))[1]) / 2


def transrate(features: Array, labels: Labels, *, epsilon: float = 1e-4, weighted: bool = False) -> float:
    """R(Z) less the mean of R(Z_c) over classes; higher is better.

    Args:
        features: (N, D) float64; centred here, the classes not once more.
        labels: (N,).
        epsilon: distortion.
        weighted: weigh a class by its share of the samples, not by 1 / C as the published listing does.
    """
    centred = features - features.mean(0)
    rows = class_rows(centred, labels)
    weights = [len(r) / len(labels) if weighted else 1 / len(rows) for r in rows]
    within = sum(w * coding_rate(r, epsilon) for w, r in zip(weights, rows, strict=True))
    return coding_rate(centred, epsilon) - within

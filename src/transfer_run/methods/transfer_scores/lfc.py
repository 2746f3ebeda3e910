"""LFC: do the features' similarities agree with the labels'? (Deshpande et al., 2021, arXiv 2102.00084)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from transfer_run.methods.transfer_scores.classes import Array, Labels, one_hot, without_empty_directions


def lfc(features: Array, labels: Labels, *, norm: Literal["fro", "spectral"] = "fro") -> float:
    """Cosine of K = F F^T and L (+1 same class, -1 different), each less its mean entry; higher is better.

    K and L are kept as weighted sums of outer products of a few columns, so no N x N matrix is formed.

    Args:
        features: (N, D) float64.
        labels: (N,).
        norm: `fro` makes it a cosine; `spectral`, seen in some code, can exceed 1.
    """
    samples, features = len(labels), without_empty_directions(features)
    target, ones = one_hot(labels), np.ones((samples, 1))
    alike = float((features.sum(0) ** 2).sum()) / samples**2  # mean entry of F F^T
    same = 2 * float((target.sum(0) ** 2).sum()) / samples**2  # mean entry of L, plus 1
    k_columns, k_weights = np.hstack([features, ones]), np.r_[np.ones(features.shape[1]), -alike]
    l_columns, l_weights = np.hstack([target, ones]), np.r_[np.full(target.shape[1], 2.0), -same]
    inner = float(k_weights @ (k_columns.T @ l_columns) ** 2 @ l_weights)
    length = _norm(k_columns, k_weights, norm) * _norm(l_columns, l_weights, norm)
    return inner / length if length > 0 else 0.0


def _norm(columns: Array, weights: Array, norm: str) -> float:
    """Norm of sum_j weights_j c_j c_j^T from its small core: R diag(weights) R^T with columns = Q R."""
    triangle = np.asarray(np.linalg.qr(columns, mode="r"))
    return float(np.linalg.norm(triangle * weights @ triangle.T, "fro" if norm == "fro" else 2))

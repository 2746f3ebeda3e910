"""LogME: the evidence of a Bayesian linear model on the features (You et al., ICML 2021, arXiv 2102.11005)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import svd

from transfer_run.methods.transfer_scores.classes import Array, Labels, one_hot, without_empty_directions

Variant = Literal["fixed_point", "icml"]
ROUNDS = 11
SMALL = 1e-5  # keeps the precisions finite where the fit is perfect
TOLERANCE = {"fixed_point": 1e-3, "icml": 1e-2}


@dataclass(frozen=True)
class Evidence:
    """The fit of Q targets.

    Attributes:
        values: (Q,) log evidence per sample.
        alphas, betas: (Q,) precision of the weights' prior and of the noise.
        weights: (Q, D) posterior means.
    """

    values: Array
    alphas: Array
    betas: Array
    weights: Array


def evidence(
    features: Array,
    targets: Array,
    *,
    variant: Variant = "fixed_point",
    full_rank_term: bool = True,
    dimensions: int | None = None,
) -> Evidence:
    """Log evidence of `t = F w + noise`, w ~ N(0, I / alpha), noise precision beta, at its maximum over both.

    Args:
        features: (N, D) float64, no bias column, not centred.
        targets: (N, Q), one model for each column.
        variant: `fixed_point` (the later, faster and tighter recursion) or `icml` (the first release).
        full_rank_term: False leaves out the D - N directions without data when N < D, as the released fixed-point
            code does; its values are then far off.
        dimensions: D of features that went through `without_empty_directions`; None: the columns given.
    """
    samples, width = len(features), dimensions or features.shape[1]
    left, singular, right = svd(features, full_matrices=False)
    spectrum, projected = singular**2, left.T @ targets
    outside = np.maximum((targets**2).sum(0) - (projected**2).sum(0), 0.0)
    empty = width - len(spectrum) if full_rank_term or variant == "icml" else 0
    extra = SMALL if variant == "icml" else 0.0
    rows = []
    for x, rest in zip(projected.T, outside, strict=True):
        alpha, beta, lam, norm, residual = _maximise(spectrum, x, float(rest), samples, TOLERANCE[variant])
        value = (
            width * np.log(alpha)
            + samples * np.log(beta)
            - np.log(alpha + beta * spectrum).sum()
            - empty * np.log(alpha)
            - beta * (residual + extra)
            - alpha * (norm + extra)
            - samples * np.log(2 * np.pi)
        )
        rows.append((value / 2 / samples, alpha, beta, right.T @ (singular * x / (spectrum + lam))))
    values, alphas, betas, weights = (np.array(column) for column in zip(*rows, strict=True))
    return Evidence(values, alphas, betas, weights)


def _maximise(
    spectrum: Array, x: Array, rest: float, samples: int, tolerance: float
) -> tuple[float, float, float, float, float]:
    """Fixed point over (alpha, beta): both, the ratio they came from, |m|^2, the squared residual."""
    alpha = beta = 1.0
    for _ in range(ROUNDS):
        lam = alpha / beta
        gamma = float((spectrum / (spectrum + lam)).sum())
        norm = float((spectrum * x**2 / (spectrum + lam) ** 2).sum())
        residual = float((x**2 / (1 + spectrum / lam) ** 2).sum()) + rest
        alpha, beta = gamma / (norm + SMALL), (samples - gamma) / (residual + SMALL)
        if abs(alpha / beta - lam) <= tolerance * lam:
            break
    return alpha, beta, lam, norm, residual


def logme(features: Array, labels: Labels, *, variant: Variant = "fixed_point", full_rank_term: bool = True) -> float:
    """Mean over the classes that occur of the evidence of `1[y = c]`; higher is better. Arguments as in `evidence`."""
    return logme_regression(features, one_hot(labels), variant=variant, full_rank_term=full_rank_term)


def logme_regression(
    features: Array, targets: Array, *, variant: Variant = "fixed_point", full_rank_term: bool = True
) -> float:
    """LogME of real-valued targets (N, Q) or (N,), the mean over their columns; higher is better."""
    found = evidence(
        without_empty_directions(features),
        targets.reshape(len(targets), -1),
        variant=variant,
        full_rank_term=full_rank_term,
        dimensions=features.shape[1],
    )
    return float(found.values.mean())

"""How far a masked unit moves the network: two terms, and the ways of the paper and of the released code to join them.

    MD(A, B) = sum over pairs of tokens of (a_i . a_j - b_i . b_j)^2      a, b: token vectors at unit length
    KD       = tau^2 sum over the batch of KL(softmax(z_dense) || softmax(z_masked))      the logits are not divided

OPTIN, arXiv 2403.17921, section 3; constants of its released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Aggregation = Literal["sum", "mean"]


def gram(features: Tensor, rows: Tensor | None = None) -> Tensor:
    """Similarities of tokens: (..., B, T, D) -> (..., R, R), of the tokens `rows` among the B * T; None: of all.

    A zero vector stays zero.
    """
    tokens = F.normalize(features.float(), dim=-1).flatten(-3, -2)
    if rows is not None:
        tokens = tokens.index_select(-2, rows)
    return tokens @ tokens.transpose(-1, -2)


def trajectory(dense: Tensor, masked: Tensor, aggregation: Aggregation = "sum") -> Tensor:
    """MD from the two Gram matrices (..., R, R): (...), at least zero."""
    squares = (dense - masked).square()
    return squares.sum((-2, -1)) if aggregation == "sum" else squares.mean((-2, -1))


def divergence(dense: Tensor, masked: Tensor, tau: float) -> Tensor:
    """KD from logits (B, C) and (..., B, C): (...), at least zero."""
    known, found = F.log_softmax(dense.double(), -1), F.log_softmax(masked.double(), -1)
    return (tau**2 * (known.exp() * (known - found)).sum((-2, -1))).to(dense.dtype)


def joined(md: Sequence[float], kd: Sequence[float], balance: Literal["fixed", "code"], *, lambda_c: float,
           ratio: float) -> list[float]:  # fmt: skip
    """S = MD + w KD of each unit, in the order in which they were masked.

    Args:
        balance: `fixed`: w = lambda_c (the paper). `code`: w brings KD near a `ratio`-th of MD, by powers of
            ten: w = 10^trunc(log10(MD / KD) - log10(ratio)) where MD > KD > 0; else the mean of the w so far, or 1.
    """
    if balance == "fixed":
        return [m + lambda_c * k for m, k in zip(md, kd, strict=True)]
    weights: list[float] = []
    scores = []
    for m, k in zip(md, kd, strict=True):
        if m > k > 0:
            weights.append(10.0 ** math.trunc(math.log10(m / k) - math.log10(ratio)))
            weight = weights[-1]
        else:
            weight = sum(weights) / len(weights) if weights else 1.0
        scores.append(m + weight * k)
    return scores


def factors(layers: int, units: int, *, last: float, all_of: float, index_from: float | None) -> Tensor:
    """What scores (layers, units) are multiplied by, in float64.

    Args:
        last: of the last layer's units.
        all_of: of every unit.
        index_from: a geometric sequence from here to 1 over the number of the unit, as released; None: none.
    """
    found = torch.full((layers, units), all_of, dtype=torch.float64)
    if index_from is not None:
        found *= index_factors(units, index_from)
    found[-1] *= last
    return found


def index_factors(units: int, start: float) -> Tensor:
    """(units,): from `start` to 1, each the same part of the one before."""
    return torch.logspace(math.log10(start), 0.0, units, dtype=torch.float64)

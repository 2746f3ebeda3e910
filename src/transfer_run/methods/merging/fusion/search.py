"""How much of what small experts learned is added to a large model's logits: chosen for every row and token.

    P = softmax(M_L)    Q = softmax(M_S)    Q_t = softmax(M_t)    P_a = softmax(M_L + sum_t a_t (M_t - M_S))
    J(a) = sum_t (KL(P_a || P) - KL(Q_t || Q))^2 + (KL(P || P_a) - KL(Q || Q_t))^2

With D = sum_t a_t (log Q_t - log Q) and log Z = logsumexp(log P + D):
KL(P || P_a) = log Z - E_P[D] and KL(P_a || P) = E_{P_a}[D] - log Z.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfer_run.errors import UserError

AT_ONCE = 1 << 24
"""Elements of logits that are searched at a time: rows are independent of each other."""
MOST_CANDIDATES = 50_000


@dataclass(frozen=True)
class Search:
    """The weights to choose from.

    Attributes:
        candidates: (C, T), in the order in which equals are decided: the first wins.
    """

    candidates: tuple[tuple[float, ...], ...]

    @classmethod
    def over(cls, experts: int, values: Sequence[float], *, joint: bool = False) -> Search:
        """One expert at a time with each of the values (T n candidates), or every combination of them (n^T).

        Raises:
            UserError: there would be too many combinations.
        """
        if not joint:
            rows = [tuple(v if t == one else 0.0 for t in range(experts)) for one in range(experts) for v in values]
            return cls(tuple(rows))
        if len(values) ** experts > MOST_CANDIDATES:
            raise UserError(
                f"{len(values)} values for each of {experts} experts are {len(values) ** experts:,} combinations.",
                where="method.multi=joint",
                remedy="method.multi=one_expert, fewer experts, or a larger method.grid.step",
            )
        return cls(tuple(itertools.product(values, repeat=experts)))

    @property
    def experts(self) -> int:
        return len(self.candidates[0])


def grid_values(low: float, high: float, step: float) -> list[float]:
    """low, low + step, ..., high.

    Raises:
        UserError: they are no grid.
    """
    if not (math.isfinite(low) and math.isfinite(high) and step > 0 and low <= high):
        raise UserError(
            f"From {low} to {high} in steps of {step} there is no weight.",
            where="method.grid",
            remedy="method.grid.min <= method.grid.max, method.grid.step > 0",
        )
    count = math.floor((high - low) / step + 1e-9) + 1
    return [low + number * step for number in range(count)]


def common(*logits: Tensor) -> list[Tensor]:
    """The logits (..., V) cut to the entries that all have: heads are padded to several sizes."""
    size = min(each.shape[-1] for each in logits)
    return [each[..., :size] for each in logits]


def objective(large: Tensor, small: Tensor, experts: Tensor, search: Search) -> Tensor:
    """J of every candidate.

    Args:
        large, small: logits (N, V); the large model's may be -inf where a token is forbidden.
        experts: logits (T, N, V).

    Returns:
        (N, C), in float32 or wider.
    """
    large, small, experts = (_precise(each).log_softmax(-1) for each in (large, small, experts))
    change = experts - small  # D_t
    towards, back = (experts.exp() * change).sum(-1), -(small.exp() * change).sum(-1)  # KL(Q_t||Q), KL(Q||Q_t)
    chances = large.exp()
    found = []
    for candidate in search.candidates:
        sum_ = _weighted(change, candidate)
        moved = large + sum_
        log_z = moved.logsumexp(-1)
        to_large = ((moved - log_z.unsqueeze(-1)).exp() * sum_).sum(-1) - log_z
        from_large = log_z - (chances * sum_).sum(-1)
        found.append(((to_large - towards).square() + (from_large - back).square()).sum(0))
    return torch.stack(found, -1)


def chosen(large: Tensor, small: Tensor, experts: Tensor, search: Search) -> Tensor:
    """The weights (N, T) of the smallest J in every row."""
    rows = max(1, AT_ONCE // large.shape[-1])
    known = large.new_tensor(search.candidates, dtype=_precise(large[:0]).dtype)
    parts = zip(large.split(rows), small.split(rows), experts.split(rows, 1), strict=True)
    return torch.cat([known[objective(*part, search).argmin(-1)] for part in parts])


def fuse(large: Tensor, small: Tensor, experts: Tensor, alpha: Search | Sequence[float]) -> tuple[Tensor, Tensor]:
    """The fused logits (N, V) and the weights (N, T).

    Args:
        large, small: logits (N, V_L), (N, V_S).
        experts: logits (T, N, V_T).
        alpha: what to search, or fixed weights, one an expert.
    """
    large, small, experts = common(large, small, experts)
    if isinstance(alpha, Search):
        weights = chosen(large, small, experts, alpha)
    else:
        weights = _precise(large[:0]).new_tensor(list(alpha)).expand(len(large), -1)
    change = (_precise(experts) - _precise(small)) * weights.T.unsqueeze(-1)
    return _precise(large) + change.sum(0), weights


def _weighted(change: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_t a_t D_t (N, V) of changes (T, N, V)."""
    total = torch.zeros_like(change[0])
    for weight, each in zip(weights, change, strict=True):
        if weight:
            total = total + weight * each
    return total


def _precise(logits: Tensor) -> Tensor:
    """In float32 at least: log-softmax of half precision is too coarse."""
    return logits if logits.dtype == torch.float64 else logits.float()

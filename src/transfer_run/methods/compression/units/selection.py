"""What units cost, and which are kept under a budget. OPTIN, arXiv 2403.17921, section 3.3.

head    3 s d e + 2 s^2 e + s e d      multiply-accumulates; s: mean length, d: width, e: width of a head
neuron  2 s d
base    layers * (heads * head + neurons * neuron)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transfer_run.errors import UserError


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates of one head, of one neuron, and of all; embeddings, norms and task heads aside.

    Attributes:
        length: tokens of the mean example.
    """

    head: float
    neuron: float
    base: float
    length: float = 0.0

    @classmethod
    def of(cls, length: float, width: int, head_width: int, layers: int, heads: int, neurons: int) -> Costs:
        s, d, e = float(length), width, head_width
        head, neuron = 3 * s * d * e + 2 * s * s * e + s * e * d, 2 * s * d
        return cls(head, neuron, layers * (heads * head + neurons * neuron), s)

    def kept(self, heads: Tensor, neurons: Tensor) -> float:
        """Of the units whose masks (L, H) and (L, I) are 1."""
        return float(heads.sum()) * self.head + float(neurons.sum()) * self.neuron


def check_budget(costs: Costs, budget: float) -> None:
    """Raises UserError where not even one head fits."""
    if budget * costs.base * (1 + 1e-12) < costs.head:
        least = costs.head / costs.base
        raise UserError(
            f"A budget of {budget:g} pays not even for one attention head ({least:.2g} of all).",
            where="method.budget",
            remedy=f"method.budget={1.01 * least:.2g} or more",
        )


def select(heads: Tensor, neurons: Tensor, costs: Costs, budget: float) -> tuple[Tensor, Tensor, float]:
    """The units to keep: so many of the best heads, and of the best neurons as many as the rest of the budget pays,
    that the scores kept add up to the most.

    Args:
        heads, neurons: scores (L, H) and (L, I), larger is better; equal ones in the order of their numbers.
        budget: share of `costs.base`.

    Returns:
        masks (L, H) and (L, I), bool, and the sum of the scores kept.

    Raises:
        UserError: not even one head fits.
    """
    head_order = heads.flatten().double().sort(descending=True, stable=True)
    neuron_order = neurons.flatten().double().sort(descending=True, stable=True)
    head_sums, neuron_sums = head_order.values.cumsum(0), neuron_order.values.cumsum(0)
    check_budget(costs, budget)
    room = budget * costs.base * (1 + 1e-12)  # a budget of 1 pays for all of it, whatever the rounding
    best: tuple[float, int, int] | None = None
    for count in range(1, heads.numel() + 1):
        left = room - count * costs.head
        if left < 0:
            break
        others = min(neurons.numel(), int(left // costs.neuron))
        objective = float(head_sums[count - 1]) + (float(neuron_sums[others - 1]) if others else 0.0)
        if best is None or objective > best[0]:
            best = objective, count, others
    assert best is not None, "check_budget has seen to that"
    objective, count, others = best
    return _first(heads, head_order.indices, count), _first(neurons, neuron_order.indices, others), objective


def _first(scores: Tensor, order: Tensor, count: int) -> Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.view_as(scores)

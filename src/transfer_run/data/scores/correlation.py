"""Pearson's and Spearman's correlation of answers and right values, over all rows together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of two series (n,) about their means."""
    one, other = one - one.mean(), other - other.mean()
    return ((one / one.norm()) @ (other / other.norm())).clamp(-1, 1)


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's coefficient of the ranks; equal values share the mean of theirs."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).to(values.dtype)
    return (last - (count - 1) / 2)[place]


class Correlation(Metric):
    """A coefficient of predictions and targets; 0 where one of them is the same in all rows.

    Of classes it is that of their numbers: they must have an order, and steps of one width. Keeps all pairs, so that
    ranks may hold different numbers of them, none included.
    """

    higher_is_better = True

    def __init__(self, coefficient: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.add_state("pairs", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.pairs.append(torch.stack([predictions, targets], dim=1).double())  # type: ignore[union-attr, operator]

    def compute(self) -> Tensor:
        pairs = torch.cat(self.pairs) if isinstance(self.pairs, list) else self.pairs
        assert isinstance(pairs, Tensor)
        constant = len(pairs) < 2 or bool((pairs == pairs[0]).all(0).any())
        return pairs.new_zeros(()) if constant else self.coefficient(pairs[:, 0], pairs[:, 1])

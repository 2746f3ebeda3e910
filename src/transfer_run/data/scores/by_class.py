"""`by_class`: what becomes of the rows of each class, class by class.

    precision/CLASS          rows that are of it, of those that were called it; 0 where none was
    recall/CLASS             rows that were called it, of those that are of it; left out where none is
    f1/CLASS                 2 right / (rows + called); left out where there is neither
    confusion/CLASS/OTHER    rows of CLASS that were called OTHER
    confusion/CLASS/(none)   rows of CLASS whose answer is no class

Counts are whole numbers, exact in any order of rows and on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

NONE = "(none)"
OF_A_CLASS = ("precision/", "recall/", "f1/", "confusion/")
"""What the names of its scores begin with."""


class ByClass(Metric):
    """The scores above, by name.

    Args:
        names: of the classes, in the order of their numbers.
    """

    higher_is_better = True
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        size = (len(names), len(names) + 1)
        self.add_state("counts", default=torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Class numbers (B,) of what was answered, and of what is right; an answer outside of them is of no class."""
        classes = len(self.names)
        called = torch.where((predictions >= 0) & (predictions < classes), predictions, classes)
        cells = (targets * (classes + 1) + called).bincount(minlength=self.counts.numel())
        self.counts += cells.view_as(self.counts)

    def compute(self) -> dict[str, float]:
        right, rows = self.counts.diagonal(), self.counts.sum(1)
        called = self.counts.sum(0)[:-1]
        found = {}
        for number, name in enumerate(self.names):
            hit, own, said = int(right[number]), int(rows[number]), int(called[number])
            found[f"precision/{name}"] = hit / said if said else 0.0
            if own:
                found[f"recall/{name}"] = hit / own
            if own or said:
                found[f"f1/{name}"] = 2 * hit / (own + said)
        for name, cells in zip(self.names, self.counts.tolist(), strict=True):
            *named, none = cells
            found |= {f"confusion/{name}/{other}": float(count) for other, count in zip(self.names, named, strict=True)}
            if none:
                found[f"confusion/{name}/{NONE}"] = float(none)
        return found


def confusion(metrics: Mapping[str, float], names: Sequence[str], split: str = "test") -> list[list[float]] | None:
    """The matrix of a result's metrics, rows of each class by what they were called; None where it holds none."""
    keys = [[f"{split}/confusion/{name}/{other}" for other in names] for name in names]
    if any(key not in metrics for row in keys for key in row):
        return None
    return [[metrics[key] for key in row] for row in keys]

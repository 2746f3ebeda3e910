"""Scores of classes, made of three counts a class: rows of it, rows that were called it, rows that were both.

    accuracy               sum(right) / rows
    mean_class_accuracy    mean of right / rows over the classes that have rows (scikit-learn's balanced accuracy)
    f1_macro               mean of 2 right / (rows + called) over the classes that have rows or were called
    f1                     that of class 1 where there are two classes, as GLUE has it; else the mean
    accuracy_many, _medium, _few   accuracy over the rows of the classes that have so many training rows
    matthews               (s right - sum(rows called)) / sqrt((s^2 - sum(rows^2)) (s^2 - sum(called^2))), s rows in all
                           (Gorodkin 2004); 0 where all rows, or all answers, are of one class

Counts are whole numbers, so the scores are exact in any order of rows and on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from transfer_run.data.long_tail import OF_GROUP


def accuracy(right: Tensor, rows: Tensor, called: Tensor) -> Tensor:
    return right.sum() / rows.sum()


def mean_class_accuracy(right: Tensor, rows: Tensor, called: Tensor) -> Tensor:
    return (right / rows)[rows > 0].mean()


def f1_macro(right: Tensor, rows: Tensor, called: Tensor) -> Tensor:
    seen = rows + called > 0
    return (2 * right / (rows + called))[seen].mean()


def f1(right: Tensor, rows: Tensor, called: Tensor) -> Tensor:
    if len(rows) != 2:
        return f1_macro(right, rows, called)
    return torch.nan_to_num(2 * right / (rows + called), nan=0.0)[1]


def matthews(right: Tensor, rows: Tensor, called: Tensor) -> Tensor:
    total = rows.sum()
    spread = (total**2 - (rows**2).sum()) * (total**2 - (called**2).sum())
    covariance = right.sum() * total - (rows * called).sum()
    return covariance / spread.sqrt() if spread > 0 else torch.zeros_like(spread)


CLASSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{function.__name__: function for function in (accuracy, mean_class_accuracy, f1, f1_macro, matthews)},
    **dict.fromkeys(OF_GROUP, accuracy),
}


class ClassScore(Metric):
    """One of `CLASSES` over all rows; an answer outside 0 to `classes` - 1 is that of no class.

    Args:
        name: of the score.
        classes: their number.
        scored: which of them are scored; None: all.
    """

    higher_is_better = True
    right: Tensor
    rows: Tensor
    called: Tensor

    def __init__(self, name: str, classes: int, scored: Sequence[int] | None = None) -> None:
        super().__init__()
        self.score, self.classes = CLASSES[name], classes
        self.scored = list(range(classes) if scored is None else scored)
        for count in ("right", "rows", "called"):
            self.add_state(count, default=torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Class numbers (B,) of what was answered, and of what is right."""
        named = predictions[(predictions >= 0) & (predictions < self.classes)]
        self.rows += targets.bincount(minlength=self.classes)
        self.called += named.bincount(minlength=self.classes)
        self.right += targets[predictions == targets].bincount(minlength=self.classes)

    def compute(self) -> Tensor:
        """NaN where no row was of a class that is scored."""
        return self.score(*(count.double()[self.scored] for count in (self.right, self.rows, self.called)))

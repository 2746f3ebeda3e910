"""Scores of one split, summed over batches and ranks by torchmetrics.

Every metric knows its direction, torchmetrics' `higher_is_better`; `Scores.better` is that of the headline.

A row without a label is predicted but not scored. An answer in words that is none of the labels counts as wrong: it is
scored as a label other than the right one; where a number is asked for, as -1 (as in T5's evaluation), or less.
A right answer that is too long to be written is compared as a whole: nothing written equals it.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from transfer_run.backbones.base import Batch
from transfer_run.data.long_tail import OF_GROUP
from transfer_run.data.scores.by_class import ByClass
from transfer_run.data.scores.classes import CLASSES, ClassScore
from transfer_run.data.scores.correlation import Correlation, pearson, spearman
from transfer_run.data.scores.direction import Better
from transfer_run.data.scores.names import BY_CLASS, KINDS, MEAN, PHRASES, check_names, scored_by
from transfer_run.data.scores.texts import COMPARED
from transfer_run.task import Task


class Answers(Protocol):
    """Reads what a text-to-text model wrote (`data/text/answers.py`)."""

    words: tuple[str, ...]
    values: bool

    def read(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) as labels or numbers (B,)."""

    def texts(self, ids: Tensor) -> list[str]:
        """Token ids (B, T) as texts."""

    def whole(self, ids: Tensor) -> Tensor:
        """Which of the right answers (B, T) are not cut, (B,)."""


class Share(Metric):
    """Mean of weighted values, as a share of rows is."""

    higher_is_better = True
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        self.total += (value.double() * weight).sum()
        self.weight += weight.sum()

    def compute(self) -> Tensor:
        return self.total / self.weight


class Perplexity(Share):
    """exp of the mean loss."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerByte(Share):
    """The mean loss of a token in bits, over the bytes that a token of the text has: comparable between tokenizers."""

    higher_is_better = False

    def __init__(self, bytes_a_token: float) -> None:
        super().__init__()
        self.bytes_a_token = bytes_a_token

    def compute(self) -> Tensor:
        return super().compute() / (math.log(2) * self.bytes_a_token)


VALUES: dict[str, Callable[[], Metric]] = {
    "pearson": lambda: Correlation(pearson),
    "spearman": lambda: Correlation(spearman),
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
}
LOSSES: dict[str, Callable[[], Metric]] = {"perplexity": Perplexity}
RUNNING: dict[str, Callable[[], Metric]] = {"bits_per_byte": lambda: BitsPerByte(math.nan)}
"""What needs to know more of the text than the loss: a split's `Scores` are told."""


def better_by(metric: str) -> Better:
    """Is the first value of a metric better than the second? Never where either is no number."""
    known = LOSSES | VALUES | RUNNING
    if metric in known and not known[metric]().higher_is_better:
        return operator.lt
    return operator.gt  # of classes, of texts, the mean of two correlations, a recall


class Scores(nn.Module):
    """All metrics of a task over one split.

    Args:
        task: names the metrics.
        answers: reads the words of a text-to-text model.
        bytes_a_token: of running text, how many bytes a token of the split has.

    Raises:
        UserError: a metric that does not exist, or that does not fit the task's form.
    """

    def __init__(self, task: Task, answers: Answers | None = None, bytes_a_token: float = math.nan) -> None:
        super().__init__()
        self.task, self.answers, self.bytes_a_token = task, answers, bytes_a_token
        self.kinds = {name: self._kind(name) for name in task.metrics if name != MEAN}
        self.parts = nn.ModuleDict({name: self._metric(name) for name in self.kinds})
        self.scored = Share()

    def _kind(self, name: str) -> str:
        """Whether a metric compares `classes`, `values` or `texts`, or sums the `loss`."""
        form, answers = self.task.form, self.answers
        kind = KINDS.get(form, "texts")
        if answers is not None and (answers.values or answers.words):
            kind = "values" if answers.values else "classes"
        check_names([name], scored_by(kind), f"{form} with {PHRASES.get(kind, kind)}")
        return "loss" if name in LOSSES else kind

    def _metric(self, name: str) -> Metric:
        if name == BY_CLASS:
            return ByClass(self.task.label_names)
        if name in CLASSES:
            group, groups = OF_GROUP.get(name), self.task.class_groups
            scored = None if group is None else [c for c, its in enumerate(groups) if its == group]
            return ClassScore(name, self.task.num_labels, scored)
        made: Metric
        if name in COMPARED:
            made = Share()
        elif name in RUNNING:
            made = BitsPerByte(self.bytes_a_token)
        else:
            made = (VALUES | LOSSES)[name]()
        return made.set_dtype(torch.float64)  # sums of a million rows keep their digits

    @property
    def needs_predictions(self) -> bool:
        """False where the loss alone is scored; generating answers would be a waste."""
        return any(kind != "loss" for kind in self.kinds.values())

    @property
    def needs_loss(self) -> bool:
        return "loss" in self.kinds.values()

    def better(self, first: float, second: float) -> bool:
        """Is `first` the better value of the headline? An error is better where it is smaller."""
        return better_by(self.task.headline)(first, second)

    @torch.no_grad()
    def update(
        self,
        predictions: Tensor | None,
        batch: Batch,
        loss: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Count one batch.

        Args:
            predictions: what `Method.predict` returns; may be None if not `needs_predictions`.
            loss: the batch's mean loss per scored token; needed if `needs_loss`.
            counted: the labels that it is a mean over, -100 where one is passed over; None: all of the batch's.
        """
        self.to(batch["labels"].device)
        if self.needs_loss:
            if loss is None:
                raise ValueError("perplexity is made of the batch's loss: update(predictions, batch, loss)")
            tokens = ((batch["labels"] if counted is None else counted) != -100).sum()
            known = tokens > 0
            self._of("loss", torch.where(known, loss.detach(), 0), tokens)
            self.scored.update(known, tokens)
        if predictions is not None and self.needs_predictions:
            if self.answers is not None and "targets" not in batch:
                self._update_texts(predictions, batch["labels"])
            else:
                self._update_labels(predictions, batch.get("targets", batch["labels"]))

    def _of(self, kind: str, *values: Tensor) -> None:
        for name, part in self.parts.items():
            if self.kinds[name] == kind:
                part.update(*values)  # type: ignore[operator]

    def _update_labels(self, predictions: Tensor, targets: Tensor) -> None:
        if self.answers is not None:
            predictions = self.answers.read(predictions).to(targets.device)
        known = ~targets.isnan() if targets.is_floating_point() else targets >= 0
        predictions, targets = predictions[known], targets[known]
        self.scored.update(known, torch.ones_like(known))
        if "values" in self.kinds.values():
            self._of("values", predictions.double(), targets.double())
        elif len(targets):
            wrong = (targets + 1) % self.task.num_labels if self.task.num_labels > 1 else -1
            self._of("classes", torch.where(predictions < 0, wrong, predictions), targets)

    def _update_texts(self, predictions: Tensor, labels: Tensor) -> None:
        assert self.answers is not None
        known = (labels != -100).any(1)
        pairs = list(zip(self.answers.texts(predictions), self.answers.texts(labels), strict=True))
        whole = self.answers.whole(labels)
        self.scored.update(known, torch.ones_like(known))
        for name, part in self.parts.items():
            if self.kinds[name] == "texts":
                near = torch.tensor([COMPARED[name](*pair) for pair in pairs], device=labels.device)
                near = torch.where(whole, near, 0.0)[known]
                part.update(near, torch.ones_like(near))  # type: ignore[operator]

    def compute(self) -> dict[str, float]:
        """The scores of all ranks together, the headline first; empty if no row has a label."""
        with warnings.catch_warnings():
            # a rank may have had only unlabelled rows
            warnings.filterwarnings("ignore", message=".*before the ``update`` method.*")
            found = {name: part.compute() for name, part in self.parts.items()}  # type: ignore[operator]
            scored = float(self.scored.compute())
        if not scored > 0:
            return {}
        many = found.pop(BY_CLASS, {})
        values = {name: float(value) for name, value in found.items()}
        if MEAN in self.task.metrics:
            values[MEAN] = sum(values.values()) / len(values)
        unseen = {name for name in OF_GROUP if values.get(name, 0.0) != values.get(name, 0.0)}  # no row of the group
        return {name: values[name] for name in self.task.metrics if name not in unseen and name != BY_CLASS} | many

    def reset(self) -> None:
        for part in (*self.parts.values(), self.scored):
            part.reset()  # type: ignore[operator]

"""Several labels a row, or none: logits (B, num_labels), labels (B, num_labels) of 0 and 1, binary cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.data.base import DataModule
from transfer_run.methods.answers import Answer, shown
from transfer_run.methods.form import Answering, Form
from transfer_run.methods.means import divisor

BETWEEN = "|"


class MultiLabel(Form):
    """A fresh head with a probability for each label; predictions are these probabilities (B, num_labels).

    A row of -100 has no labels: it is answered, not learned from.
    """

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over all labels of the rows that have some."""
        known = (labels >= 0).float()
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float().clamp(min=0), reduction="none")
        return (losses * known).sum() / divisor(known.sum())

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        return method(batch).float().sigmoid()

    def scores(self, data: DataModule, split: str) -> Any:
        from transfer_run.data.scores.multi_label import MultiLabelScores

        return MultiLabelScores(data.task)

    def answers(self, data: DataModule, predictions: Tensor, batch: Batch, logits: Tensor | None) -> Sequence[Answer]:
        """Names between bars, and the probability of each that was answered."""
        names, found = data.task.label_names, []
        for right, chances in zip(batch["labels"].tolist(), predictions.tolist(), strict=True):
            said = [number for number, chance in enumerate(chances) if chance > 0.5]
            found.append(
                Answer(
                    BETWEEN.join(name for name, there in zip(names, right, strict=True) if there > 0),
                    BETWEEN.join(names[number] for number in said),
                    BETWEEN.join(shown(chances[number]) for number in said),
                )
            )
        return found

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        logits = method(batch).float()[0]
        drawn = torch.bernoulli(logits.detach().sigmoid().cpu(), generator=generator).to(logits.device)
        return -F.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")

    def labelled_likelihood(self, method: Answering, batch: Batch) -> Tensor:
        return -method.task_loss(method(batch), batch["labels"]) * (batch["labels"] >= 0).sum()

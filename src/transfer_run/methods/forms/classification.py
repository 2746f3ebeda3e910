"""One of several classes: logits (B, num_labels), integer labels (B,), cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.data.base import DataModule
from transfer_run.methods.answers import Answer, named, probabilities
from transfer_run.methods.form import Answering, Form, draw


class Classification(Form):
    """A fresh head on the pooled features; predictions are class numbers (B,)."""

    classes = True

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        return self.entropy(method, logits, labels)

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        return method(batch).argmax(-1)

    def answers(self, data: DataModule, predictions: Tensor, batch: Batch, logits: Tensor | None) -> Sequence[Answer]:
        names = () if data.task.sequence else data.task.label_names  # tasks of a sequence number their own classes
        said = zip(named(predictions, names), probabilities(logits, predictions), strict=True)
        return [Answer(right, *each) for right, each in zip(named(batch["labels"], names), said, strict=True)]

    def class_likelihoods(self, method: Answering, batch: Batch, answers: Sequence[Sequence[int]] = ()) -> Tensor:
        return F.log_softmax(method(batch).float(), dim=-1)

    def has_list(self, answers: Sequence[Sequence[int]]) -> bool:
        return True

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        logs = F.log_softmax(method(batch).float(), -1)
        return logs[0, draw(logs[0], generator)]

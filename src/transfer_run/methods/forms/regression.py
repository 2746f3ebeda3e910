"""One number per example: predictions and float labels (B,), mean squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.data.base import DataModule
from transfer_run.methods.answers import Answer, shown
from transfer_run.methods.form import Answering, Form


class Regression(Form):
    """A fresh head of one output; as a probability, the mean of a Gaussian of variance one."""

    gaussian = True

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1).float(), labels.float())

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        return method(batch).squeeze(-1)

    def answers(self, data: DataModule, predictions: Tensor, batch: Batch, logits: Tensor | None) -> Sequence[Answer]:
        pairs = zip(batch["labels"].tolist(), predictions.float().tolist(), strict=True)
        return [Answer(shown(right), shown(said)) for right, said in pairs]

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        mean = method(batch).float().squeeze()
        drawn = mean.detach().cpu() + torch.randn((), generator=generator)
        return -0.5 * (mean - drawn.to(mean.device)).square()

    def labelled_likelihood(self, method: Answering, batch: Batch) -> Tensor:
        return -0.5 * method.task_loss(method(batch), batch["labels"])

"""The next steps of a series: forecast and labels (B, H, targets), mean squared error over what was measured.

A label of NaN was not measured: it is neither learned nor scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.methods.form import Answering, Form


class Forecasting(Form):
    """The pretrained forecast head answers (`Forecaster.forecast`); as a probability, the mean of a Gaussian of
    variance one around each value."""

    gaussian = True
    reader = "forecast head"

    def pretrained_heads(self, backbone: Any) -> Sequence[nn.Module]:
        return (backbone.forecast_head,)

    def idle_parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        return backbone.idle_parameters(self.stacks(backbone), speaks=False)

    def logits(self, method: Answering, batch: Batch) -> Tensor:
        task = method.task
        targets = [task.channels.index(name) for name in task.label_names]
        forecast: Tensor = method.backbone.forecast(method.features(batch), batch, task.horizon, targets)
        return forecast

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        return mean_over_known(F.mse_loss(logits.float(), as_known(labels), reduction="none"), labels)

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        return method(batch)

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        mean = method(batch).float()
        drawn = mean.detach().cpu() + torch.randn(mean.shape, generator=generator)
        return -0.5 * (mean - drawn.to(mean.device)).square().sum()

    def labelled_likelihood(self, method: Answering, batch: Batch) -> Tensor:
        labels = batch["labels"]
        return -0.5 * method.task_loss(method(batch), labels) * (~labels.isnan()).sum()


def as_known(labels: Tensor) -> Tensor:
    """The labels as numbers, float32; 0 where none was measured, which no loss counts."""
    return labels.float().nan_to_num(0.0)


def mean_over_known(losses: Tensor, labels: Tensor) -> Tensor:
    """The mean of the losses (...) where a label was measured; 0 where none was."""
    known = ~labels.isnan()
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)

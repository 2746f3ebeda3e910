"""The next steps of a series: forecast and labels (B, H, targets), mean squared error over what was measured.

A label of NaN was not measured: it is neither learned nor scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.base import DataModule
from transfer_run.methods.form import Answering, Form
from transfer_run.methods.means import divisor

SHOWN = 4
"""Targets on a picture."""


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

    def picture(self, method: Answering, data: DataModule, folder: Path) -> None:
        """`forecast.png`: up to four targets of three windows, from the test's beginning, middle and end."""
        count, names = data.sizes["test"], method.task.label_names[:SHOWN]
        rows = sorted({0, count // 2, count - 1})
        batch = data.collate([data.split("test")[row] for row in rows])
        device = next((p.device for p in method.backbone.parameters()), torch.device("cpu"))
        with torch.no_grad():
            said = method({name: tensor.to(device) for name, tensor in batch.items()}).float().cpu().numpy()
        from transfer_run.data.series.picture import Window, save_forecasts  # matplotlib: not needed for a plan

        told = data.transform_description
        scale = {name: (told["mean"][i], told["std"][i]) for i, name in enumerate(told["channels"])}
        mean, std = (np.array([scale[name][part] for name in names]) for part in (0, 1))
        chosen = [method.task.channels.index(name) for name in names]
        past, came = batch["past_values"].numpy()[..., chosen], batch["labels"].numpy()[..., : len(names)]
        windows = [
            Window(f"window {row + 1}", *(part[i] * std + mean for part in (past, came, said[..., : len(names)])))
            for i, row in enumerate(rows)
        ]
        save_forecasts(windows, names, folder / "forecast.png")

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
    return torch.where(known, losses, 0.0).sum() / divisor(known.sum())

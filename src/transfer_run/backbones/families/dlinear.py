"""DLinear: a moving average and what is left of it, each carried on by one linear map over time. Zeng et al. 2023,
"Are Transformers Effective for Time Series Forecasting?" (arXiv 2205.13504), section 4.

    trend = mean of `kernel` steps around each, ends repeated        rest = past - trend
    forecast = W_trend trend + W_rest rest                           the same maps for all channels

Its weights are those of a run, or random: nobody publishes any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Batch, State
from transfer_run.backbones.forecaster import Forecaster
from transfer_run.backbones.weights.checkpoints import fill, read_tensors
from transfer_run.errors import UserError


class Maps(nn.Module):
    """The two maps over time, (.., 2, T) -> (.., H)."""

    def __init__(self, past: int, future: int) -> None:
        super().__init__()
        self.rest, self.trend = nn.Linear(past, future), nn.Linear(past, future)

    def forward(self, parts: Tensor) -> Tensor:
        out: Tensor = self.rest(parts[..., 0, :]) + self.trend(parts[..., 1, :])
        return out


class DLinear(Forecaster):
    """`architecture.kernel`: steps of the moving average, odd."""

    family = "dlinear"
    model: Maps

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self.kernel = int(config["architecture"]["kernel"])
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(
                f"A moving average of {self.kernel} steps has no middle.",
                where="backbone.architecture.kernel",
                remedy="an odd number of steps",
            )

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> DLinear:
        shape = config["architecture"]
        return cls(Maps(int(shape["context_length"]), int(shape["prediction_length"])), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> DLinear:
        backbone = cls.from_architecture(config)
        fill(backbone.model, read_tensors(folder), folder)
        return backbone

    @property
    def forecast_head(self) -> nn.Module:
        return self.model

    @property
    def feature_width(self) -> int:
        return 2 * self.context_length

    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        return State(self.recent(batch["past_values"]), "series")

    def finish(self, state: State) -> Tensor:
        """(B, C, 2 T): what is left, then the trend."""
        past = state.hidden.transpose(1, 2)
        ends = self.kernel // 2
        trend = F.avg_pool1d(F.pad(past, (ends, ends), mode="replicate"), self.kernel, stride=1)
        return torch.cat([past - trend, trend], -1)

    def forecast(self, features: Tensor, batch: Batch, horizon: int, targets: Sequence[int]) -> Tensor:
        parts = features[:, list(targets)].unflatten(-1, (2, -1))
        out: Tensor = self.model(parts)
        return out[..., :horizon].transpose(1, 2)

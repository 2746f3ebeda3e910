"""Forecasts without a single weight: the last value again, or the last season again. What every model must beat.

x_(t+h) = x_(t+h-period), and beyond the first season the same season again     period 1: the last value
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Batch, State
from transfer_run.backbones.forecaster import Forecaster
from transfer_run.errors import UserError


class Naive(Forecaster):
    """`architecture.period`: steps of a season, at most `context_length`."""

    family = "naive"

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self.period = int(config["architecture"]["period"])
        if not 1 <= self.period <= self.context_length:
            raise UserError(
                f"A season of {self.period} steps does not lie within the {self.context_length} that are read.",
                where="backbone.architecture.period",
                remedy=f"1 (the last value) to {self.context_length} (backbone.architecture.context_length)",
            )

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> Naive:
        return cls(nn.Identity(), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> NoReturn:
        raise UserError(
            f"{config.get('name')} has no weights.", where="backbone.weights", remedy="backbone.weights=random"
        )

    @property
    def forecast_head(self) -> nn.Module:
        return self.model

    @property
    def feature_width(self) -> int:
        return self.period

    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        return State(self.recent(batch["past_values"]), "series")

    def finish(self, state: State) -> Tensor:
        return state.hidden[:, -self.period :].transpose(1, 2)

    def forecast(self, features: Tensor, batch: Batch, horizon: int, targets: Sequence[int]) -> Tensor:
        steps = torch.arange(horizon, device=features.device) % self.period
        return features[:, list(targets)].index_select(-1, steps).transpose(1, 2)

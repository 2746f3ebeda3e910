"""What every family that forecasts has beside the interface of `base.py`: features of each channel, and a forecast.

    past_values (B, T, C) ── embed, blocks, finish ──▶ pool ──▶ (B, C, F) ── forecast ──▶ (B, horizon, targets)

A method that changes the way to the features (`Method.features`) is answered by the same pretrained head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError


class Forecaster(Backbone):
    """Base of families whose `architecture` says `context_length` (T) and `prediction_length` (the longest H)."""

    stacks = ("series",)

    @property
    def context_length(self) -> int:
        return int(self.config["architecture"]["context_length"])

    @property
    def prediction_length(self) -> int:
        return int(self.config["architecture"]["prediction_length"])

    @property
    @abstractmethod
    def forecast_head(self) -> nn.Module:
        """The pretrained module that reads the features: what a linear probe trains."""

    @abstractmethod
    def forecast(self, features: Tensor, batch: Batch, horizon: int, targets: Sequence[int]) -> Tensor:
        """(B, horizon, targets) in the scale of `past_values`.

        Args:
            features: (B, C, F), what `pool` returns.
            batch: `past_values` (B, T, C), and what else the family reads of it.
            horizon: steps, at most `prediction_length`.
            targets: the channels that are forecast, by their places.
        """

    def pool(self, last: Tensor, state: State) -> Tensor:
        """What the forecast head reads, (B, C, F)."""
        return last

    def width(self, stack: str, index: int | None = None) -> int:
        """One number a step and channel, where a family has no wider hidden state."""
        return 1

    def recent(self, values: Tensor) -> Tensor:
        """The last T steps of (B, T or more, C).

        Raises:
            UserError: there are fewer; padding would be read as values.
        """
        steps, needed = values.shape[1], self.context_length
        if steps < needed:
            raise UserError(
                f"{self.config.get('name')} reads {needed} steps, the series has {steps}.",
                where="past_values",
                remedy="give it a longer past, or choose a backbone that reads less",
            )
        return values[:, steps - needed :]

"""PatchTST (Nie et al. 2023, arXiv 2211.14730) and PatchTSMixer (Ekambaram et al. 2023, arXiv 2306.09364) of
transformers: forecasters in one piece, as the library runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PatchTSMixerForPrediction, PatchTSTForPrediction

from transfer_run.backbones.base import Batch, State
from transfer_run.backbones.forecaster import Forecaster
from transfer_run.backbones.weights.checkpoints import new_transformer, read_transformer
from transfer_run.errors import UserError

CLASSES = {"patchtst": PatchTSTForPrediction, "patchtsmixer": PatchTSMixerForPrediction}


class PatchForecaster(Forecaster):
    """`architecture.model_type` (`patchtst`, `patchtsmixer`) and the words of its config class."""

    family = "patchtst"

    @staticmethod
    def _class(config: dict[str, Any]) -> Any:
        kind = str(config["architecture"].get("model_type"))
        if kind not in CLASSES:
            raise UserError(
                f"There is no forecaster of type {kind!r}.",
                where="backbone.architecture.model_type",
                nearest=sorted(CLASSES),
            )
        return CLASSES[kind]

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> PatchForecaster:
        return cls(new_transformer(cls._class(config), config["architecture"]), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> PatchForecaster:
        return cls(read_transformer(cls._class(config), folder, config["architecture"]), config)

    @property
    def forecast_head(self) -> nn.Module:
        head: nn.Module = self.model.head
        return head

    @property
    def feature_width(self) -> int:
        return self.prediction_length

    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        observed = batch.get("past_observed")
        mask = None if observed is None else self.recent(observed)
        return State(self.recent(batch["past_values"]), "series", context={"mask": mask})

    def finish(self, state: State) -> Tensor:
        """The model's own forecast (B, C, H). A model of one channel takes each as a row of its own."""
        past, mask, channels = state.hidden, state.context["mask"], state.hidden.shape[2]
        own = int(self.model.config.num_input_channels)
        if own not in (1, channels):
            raise UserError(
                f"{self.config.get('name')} is made for {own} channels, the series has {channels}.",
                where="backbone.architecture.num_input_channels",
                remedy=f"{channels}, or 1 for a model that takes each channel by itself",
            )
        given = {"past_values": past} if mask is None else {"past_values": past, self._mask_name: mask}
        if own == 1:
            given = {name: tensor.transpose(1, 2).flatten(0, 1).unsqueeze(-1) for name, tensor in given.items()}
        out: Tensor = self.model(**given).prediction_outputs
        return out.transpose(1, 2).reshape(len(past), channels, -1)

    @property
    def _mask_name(self) -> str:
        return "past_observed_mask" if self.config["architecture"]["model_type"] == "patchtst" else "observed_mask"

    def forecast(self, features: Tensor, batch: Batch, horizon: int, targets: Sequence[int]) -> Tensor:
        return features[:, list(targets), :horizon].transpose(1, 2)

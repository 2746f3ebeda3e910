"""Tiny Time Mixers (Ekambaram et al., NeurIPS 2024, arXiv 2401.03955), run layer by layer; no library has them.

    past ─ scaled, patched ─▶ tap zero (B, C, n, d) ─ mixer layers ─▶ finish ─▶ decoder ─▶ (B, C, n d_dec) ─▶ head

A block is one mixer layer, whatever its adaptive level: between blocks a state is always seen as n patches of d
entries. The hub's model.safetensors is read by the names of its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from transfer_run.backbones.base import Batch, State
from transfer_run.backbones.forecaster import Forecaster
from transfer_run.backbones.mixers.layers import through
from transfer_run.backbones.mixers.network import Network, Shape, shape_of, window_scale
from transfer_run.backbones.weights.checkpoints import fill, read_tensors
from transfer_run.backbones.weights.files import stored_config
from transfer_run.errors import UserError
from transfer_run.files import write_json

KIND = "tinytimemixer"
FREE = ("dropout", "head_dropout", "num_input_channels")
"""Settings in which a folder's config may differ: no weight, and no answer, depends on them."""
ENCODER = "model.backbone.encoder.mlp_mixer_encoder"
_PARTS = {
    "norm1": "patch_mixer.norm.norm", "norm2": "feature_mixer.norm.norm", "mlp": "feature_mixer.mlp",
    "mlp_in": "feature_mixer.mlp.fc1", "mlp_out": "feature_mixer.mlp.fc2",
}  # fmt: skip


class TinyTimeMixer(Forecaster):
    """`architecture`: the words of the hub's config.json (`mixers/network.py`)."""

    family = "ttm"
    model: Network

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self._layers = self.model.backbone.encoder.mlp_mixer_encoder.layers()

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> TinyTimeMixer:
        shape = shape_of(config["architecture"])
        try:
            return cls(Network(shape), config)
        except ValueError as error:
            raise UserError(
                f"The adaptive levels do not fit: {error}.",
                where="backbone.architecture.d_model, backbone.architecture.adaptive_patching_levels",
                remedy="a width that 2^(levels - 1) divides",
            ) from error

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> TinyTimeMixer:
        backbone = cls.from_architecture(config)
        if folder.is_dir() and (folder / "config.json").is_file():
            _refuse_other(stored_config(folder), backbone.model.shape, folder)
        fill(backbone.model, read_tensors(folder), folder)
        return backbone

    def save_library(self, folder: Path) -> None:
        """As the hub has it: config.json and model.safetensors, which the official package reads, too."""
        folder.mkdir(parents=True, exist_ok=True)
        shape = {field.name: getattr(self.model.shape, field.name) for field in fields(Shape)}
        write_json(folder / "config.json", {**shape, "model_type": KIND, "patch_stride": self.model.shape.stride})
        tensors = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    # ---- architecture
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return [layer for _, layer, _ in self._layers]

    def width(self, stack: str, index: int | None = None) -> int:
        return self.model.shape.d_model

    def parts(self, stack: str, index: int) -> dict[str, str]:
        """Patches are mixed in the place of attention: its norm has a name, and it has no projections."""
        path, layer, _ = self._layers[index]
        return {
            name: f"{ENCODER}.{path}.{part}"
            for name, part in _PARTS.items()
            if name != "norm1" or layer.patch_mixer is not None
        }

    @property
    def feature_width(self) -> int:
        return self.model.head.base_forecast_block.in_features

    @property
    def forecast_head(self) -> nn.Module:
        return self.model.head

    def mix_channels(self, channels: int) -> None:
        """Fresh channel mixers in every decoder layer; where they are already there they stay."""
        for _, layer, _ in self.model.decoder.decoder_block.layers():
            if layer.channel_feature_mixer is None:
                layer.mix_channels(channels)

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        past = self.recent(batch["past_values"])
        loc, scale = self._scale(batch)
        patches, encoder = self.model.patched((past - loc) / scale), self.model.backbone.encoder
        if encoder.freq_mod is not None and "frequency" not in batch:
            raise UserError(
                f"{self.config.get('name')} reads the length of a step, which the batch does not tell.",
                where="backbone.architecture.resolution_prefix_tuning",
                remedy="give each row its number as `frequency` (B,): 0 of any other step, 7 of an hour",
            )
        return State(encoder.embed(patches, batch.get("frequency")), "series", context={"patches": patches})

    def _scale(self, batch: Batch) -> tuple[Tensor, Tensor]:
        observed = batch.get("past_observed")
        return window_scale(self.recent(batch["past_values"]), None if observed is None else self.recent(observed))

    def _step(self, state: State) -> State:
        _, layer, factor = self._layers[state.index]
        return replace(state, hidden=through(layer, state.hidden, factor))

    def finish(self, state: State) -> Tensor:
        """(B, C, n, d): nothing follows the last layer."""
        return state.hidden

    def pool(self, last: Tensor, state: State) -> Tensor:
        """The decoder's output, flat: (B, C, n d_dec)."""
        out: Tensor = self.model.decoder(last, state.context["patches"])
        return out.flatten(2)

    def forecast(self, features: Tensor, batch: Batch, horizon: int, targets: Sequence[int]) -> Tensor:
        chosen, head = list(targets), self.model.head
        forecast = head(features)[:, :horizon, chosen]
        if head.fcm_block is not None:
            mixer, past = head.fcm_block, self.recent(batch["past_values"])
            forecast = mixer(forecast, past[..., [*chosen, *mixer.exogenous]], batch.get("future_exogenous"))
        loc, scale = self._scale(batch)
        return forecast * scale[..., chosen] + loc[..., chosen]


def _refuse_other(stored: dict[str, Any], shape: Shape, folder: Path) -> None:
    """Raises UserError where the folder's config says another network than the architecture does."""
    if stored.get("model_type") != KIND:
        raise UserError(
            f"The weights are of a model of type {stored.get('model_type')!r}, not {KIND!r}.",
            where=str(folder / "config.json"),
            remedy="choose the backbone that goes with these weights",
        )
    ours = {field.name: getattr(shape, field.name) for field in fields(Shape)} | {"patch_stride": shape.stride}
    words = {key: value for key, value in stored.items() if key in ours and key not in FREE}
    there = {**words, "patch_stride": stored.get("patch_stride") or stored.get("patch_length", shape.stride)}
    for key, value in there.items():
        if value != ours[key]:
            raise UserError(
                f"The weights have {key}={value}, the backbone {ours[key]}.",
                where=str(folder / "config.json"),
                remedy=f"backbone.architecture.{key}={value}",
            )

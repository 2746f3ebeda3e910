"""A Tiny Time Mixer (Ekambaram et al., NeurIPS 2024, arXiv 2401.03955) as plain modules, named as in the hub's files.

past (B, T, C) ─ scale ─ patches ─ patcher ─▶ (B, C, n, d) ─ levels ─▶ adapter ─ decoder ─▶ flat ─▶ head ─▶ (B, H, C)
                                   [resolution prefix: one patch more in front]        [forecast channel mixing]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from transfer_run.backbones.mixers.layers import Gate, Mixers
from transfer_run.errors import UserError, nearest_names

EPS = 1e-5
"""What is added to the variance of a window."""
MODES = ("common_channel", "mix_channel")


@dataclass(frozen=True)
class Shape:
    """The words of a hub's config.json that make a network; `architecture` of a backbone holds them."""

    context_length: int = 64
    patch_length: int = 8
    patch_stride: int | None = None
    num_input_channels: int = 1
    d_model: int = 16
    expansion_factor: int = 2
    num_layers: int = 3
    dropout: float = 0.2
    mode: str = "common_channel"
    gated_attn: bool = True
    norm_mlp: str = "LayerNorm"
    norm_eps: float = 1e-5
    adaptive_patching_levels: int = 0
    scaling: str = "std"
    resolution_prefix_tuning: bool = False
    frequency_token_vocab_size: int = 5
    decoder_num_layers: int = 8
    decoder_d_model: int = 8
    decoder_adaptive_patching_levels: int = 0
    decoder_raw_residual: bool = False
    decoder_mode: str = "common_channel"
    head_dropout: float = 0.2
    prediction_length: int = 16

    @property
    def stride(self) -> int:
        return self.patch_stride or self.patch_length

    @property
    def patches(self) -> int:
        """n, the prefix included."""
        return (self.context_length - self.patch_length) // self.stride + 1 + self.resolution_prefix_tuning

    def mixing(self, dropout: float) -> dict[str, Any]:
        """What all mixers share."""
        return {
            "expansion": self.expansion_factor, "dropout": dropout, "gated": self.gated_attn, "norm": self.norm_mlp,
            "eps": self.norm_eps,
        }  # fmt: skip


NOT_HERE = {
    "self_attn": False,
    "use_positional_encoding": False,
    "use_decoder": True,
    "categorical_vocab_size_list": None,
}
"""Words of the hub's config that are built here for this value alone."""


def shape_of(words: Mapping[str, Any]) -> Shape:
    """The shape that `backbone.architecture` says.

    Raises:
        UserError: a word that there is not, a value that is not built here, or lengths that do not fit.
    """
    where, known = "backbone.architecture", [field.name for field in fields(Shape)]
    for key, value in words.items():
        if key in NOT_HERE and value != NOT_HERE[key]:
            raise UserError(f"{key}={value} is not built here.", where=f"{where}.{key}", remedy="choose other weights")
        if key not in (*known, *NOT_HERE):
            near = nearest_names(key, known) or known
            raise UserError(f"A Tiny Time Mixer has no {key!r}.", where=f"{where}.{key}", nearest=near)
    shape = Shape(**{key: value for key, value in words.items() if key in known})
    if shape.context_length <= shape.patch_length:
        raise UserError(
            f"A past of {shape.context_length} steps holds no two patches of {shape.patch_length}.",
            where=f"{where}.context_length, {where}.patch_length",
            remedy="a longer past, or shorter patches",
        )
    for key, value, valid in (
        ("scaling", shape.scaling, ("std",)), ("mode", shape.mode, MODES), ("decoder_mode", shape.decoder_mode, MODES),
    ):  # fmt: skip
        if value not in valid:
            raise UserError(f"{key}={value} is not built here.", where=f"{where}.{key}", nearest=list(valid))
    return shape


class Encoder(nn.Module):
    """Patches (B, C, n, p) to (B, C, n, d) in front of the levels."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        patch, width = shape.patch_length, shape.d_model
        self.patcher = nn.Linear(patch, width)
        channels = shape.num_input_channels if shape.mode == "mix_channel" else None
        self.mlp_mixer_encoder = Mixers(
            shape.num_layers,
            shape.adaptive_patching_levels,
            shape.patches,
            width,
            channels,
            **shape.mixing(shape.dropout),
        )
        self.freq_mod: nn.Module | None = None
        if shape.resolution_prefix_tuning:
            between = (patch + width) // 2
            self.freq_mod = nn.Sequential(
                nn.Embedding(shape.frequency_token_vocab_size, patch),
                nn.Linear(patch, between),
                nn.GELU(),
                nn.Linear(between, width),
            )

    def embed(self, patches: Tensor, frequency: Tensor | None) -> Tensor:
        """Patches (B, C, n, p) as the first level sees them.

        Args:
            frequency: (B,) numbers of the steps' lengths, for the prefix.
        """
        hidden: Tensor = self.patcher(patches)
        if self.freq_mod is None or frequency is None:
            return hidden
        prefix = self.freq_mod(frequency)[:, None, None].expand(-1, hidden.shape[1], -1, -1)
        return torch.cat([prefix, hidden], 2)


class Backbone(nn.Module):
    """The part that is frozen where few data are learned from."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)


class Decoder(nn.Module):
    """(B, C, n, d) to (B, C, n, d_dec)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.decoder_d_model
        self.adapter = nn.Linear(shape.d_model, width) if shape.d_model != width else None
        self.decoder_raw_embedding = nn.Linear(shape.patch_length, width) if shape.decoder_raw_residual else None
        channels = shape.num_input_channels if shape.decoder_mode == "mix_channel" else None
        self.decoder_block = Mixers(
            shape.decoder_num_layers, shape.decoder_adaptive_patching_levels, shape.patches, width, channels,
            **shape.mixing(shape.head_dropout),
        )  # fmt: skip

    def forward(self, hidden: Tensor, patches: Tensor) -> Tensor:
        hidden = hidden if self.adapter is None else self.adapter(hidden)
        if self.decoder_raw_embedding is not None:
            if patches.shape[2] < hidden.shape[2]:  # the prefix has no raw patch
                patches = torch.cat([torch.zeros_like(patches[:, :, :1]), patches], 2)
            hidden = hidden + self.decoder_raw_embedding(patches)
        out: Tensor = self.decoder_block(hidden)
        return out


class ForecastMixer(nn.Module):
    """Forecast channel mixing: each step of the forecast is corrected by what stands around it in all channels.

    Known future channels are put beside the forecast; in front of them stand the last `around` past values (or zeros),
    behind them zeros. Windows of 2 around + 1 steps, a gate over all their entries, one linear map to the targets.
    As in the official code, past and known values come unscaled beside forecasts in the scale of the window: it relies
    on the data set's own standardisation.

    Args:
        targets: number of channels that are forecast.
        exogenous: places, among all channels, of those that are known in the future.
        around: c, steps before and behind.
        mixer_layers: layers of a mixer over the channels before the gate; None: no mixer.
        past: put the last past values in front, not zeros.
    """

    def __init__(
        self, shape: Shape, targets: int, exogenous: Sequence[int], *, around: int, gated: bool, past: bool,
        mixer_layers: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, window = targets + len(exogenous), 2 * around + 1
        self.around, self.past, self.exogenous = around, past, tuple(exogenous)
        self.fcm_embedding: nn.Module | None = None
        if mixer_layers is not None:
            words = {**shape.mixing(shape.head_dropout), "gated": gated}
            self.exog_mixer = Mixers(mixer_layers, 0, channels, 2 * window, **words)
            self.fcm_embedding = nn.Linear(window, 2 * window)
            window *= 2
        self.mlp = nn.Linear(channels * window, targets)
        self.fcm_gating_block: nn.Module = Gate(channels * window) if gated else nn.Identity()

    def forward(self, forecast: Tensor, past: Tensor, known: Tensor | None) -> Tensor:
        """(B, H, targets), scaled, to the same.

        Args:
            past: (B, T, targets + exogenous), unscaled.
            known: (B, H, exogenous), unscaled.
        """
        whole = forecast if known is None else torch.cat([forecast, known.to(forecast.dtype)], -1)
        if self.around:
            behind = torch.zeros_like(whole[:, :1]).expand(-1, self.around, -1)
            before = past[:, past.shape[1] - self.around :].to(whole.dtype) if self.past else behind
            whole = torch.cat([before, whole, behind], 1)
        windows = whole.unfold(1, 2 * self.around + 1, 1)  # (B, H, channels, 2c + 1)
        if self.fcm_embedding is not None:
            windows = self.exog_mixer(self.fcm_embedding(windows))
        return forecast + self.mlp(self.fcm_gating_block(windows.flatten(2)))


class Head(nn.Module):
    """Features (B, C, n d_dec) to forecasts (B, H, C)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dropout_layer = nn.Dropout(shape.head_dropout)
        self.base_forecast_block = nn.Linear(shape.patches * shape.decoder_d_model, shape.prediction_length)
        self.fcm_block: ForecastMixer | None = None

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.base_forecast_block(self.dropout_layer(features))
        return out.transpose(1, 2)


class Network(nn.Module):
    """All of it; whoever holds it runs its parts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone, self.decoder, self.head = Backbone(shape), Decoder(shape), Head(shape)

    def mix_forecasts(self, targets: int, exogenous: Sequence[int], **words: Any) -> None:
        """Give the head a fresh forecast mixer."""
        with self.head.base_forecast_block.weight.device:
            self.head.fcm_block = ForecastMixer(self.shape, targets, exogenous, **words)

    def patched(self, scaled: Tensor) -> Tensor:
        """(B, T, C) as patches (B, C, n, p); what fills no patch is the oldest, and left out."""
        patch, stride = self.shape.patch_length, self.shape.stride
        first = (scaled.shape[1] - patch) % stride
        return scaled[:, first:].unfold(1, patch, stride).transpose(1, 2)


def window_scale(past: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and scale of each window and channel (B, 1, C); those of what was observed.

    Args:
        past: (B, T, C).
        observed: (B, T, C), 1 where a value was measured; None: all were.
    """
    if observed is None:
        return past.mean(1, keepdim=True), (past.var(1, keepdim=True, unbiased=False) + EPS).sqrt()
    observed = observed.to(past.dtype)
    count = observed.sum(1, keepdim=True).clamp(min=1)
    loc = (past * observed).sum(1, keepdim=True) / count
    variance = ((past - loc) * observed).square().sum(1, keepdim=True) / count
    return loc, (variance + EPS).sqrt()

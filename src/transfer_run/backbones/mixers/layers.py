"""The layers of a Tiny Time Mixer on (B, C, n, d): batch, channels, patches, features. arXiv 2401.03955, section 3.

    [channel mixer] ─▶ patch mixer (none for a single patch) ─▶ feature mixer

Each of them normalises over d, mixes one axis, and adds the result to what came in. Patch and feature mixers apply the
MLP first and its gate behind it, the channel mixer the other way round. Modules bear the names of the hub's tensors.
"""

from __future__ import annotations

from torch import Tensor, nn


class Gate(nn.Module):
    """x * softmax(W x + b) over the last axis: shares that add up to one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attn_layer = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.attn_layer(x).softmax(-1)
        return out


class MLP(nn.Module):
    """Two linear maps over the last axis, `expansion` times as wide between them."""

    def __init__(self, size: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, size * expansion), nn.Linear(size * expansion, size)
        self.dropout1, self.act, self.dropout2 = nn.Dropout(dropout), nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout2(self.fc2(self.dropout1(self.act(self.fc1(x)))))
        return out


class OverBatch(nn.Module):
    """Batch norm of each feature, over batch, channels and patches."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.batchnorm(x.flatten(0, -2))
        return out.view_as(x)


class Norm(nn.Module):
    """`LayerNorm` or `BatchNorm` over the features."""

    def __init__(self, kind: str, width: int, eps: float) -> None:
        super().__init__()
        self.norm = OverBatch(width, eps) if "batch" in kind.lower() else nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class Mixer(nn.Module):
    """x + mix(norm(x)) along one axis.

    Args:
        axis: 1: channels, 2: patches, 3: features.
        size: entries of that axis.
        width: d, what is normalised.
        gated: a gate behind the MLP (before it for channels).
    """

    def __init__(
        self, axis: int, size: int, width: int, *, expansion: int, dropout: float, gated: bool, norm: str, eps: float
    ) -> None:
        super().__init__()
        self.axis = axis
        self.norm = Norm(norm, width, eps)
        self.mlp = MLP(size, expansion, dropout)
        self.gating_block: nn.Module = Gate(size) if gated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).transpose(self.axis, 3)
        y = self.mlp(self.gating_block(y)) if self.axis == 1 else self.gating_block(self.mlp(y))
        return x + y.transpose(self.axis, 3)


class MixerLayer(nn.Module):
    """One layer; see the module.

    Args:
        patches, width: n and d of what it is given.
        channels: C, where channels are mixed; None: each by itself.
        words: what all mixers share: expansion, dropout, gated, norm, eps.
    """

    def __init__(self, patches: int, width: int, channels: int | None, **words: object) -> None:
        super().__init__()
        self.words, self.width = words, width
        self.patch_mixer = Mixer(2, patches, width, **words) if patches > 1 else None  # type: ignore[arg-type]
        self.feature_mixer = Mixer(3, width, width, **words)  # type: ignore[arg-type]
        self.channel_feature_mixer: nn.Module | None = None
        if channels is not None:
            self.mix_channels(channels)

    def mix_channels(self, channels: int) -> None:
        """Put a fresh channel mixer in front."""
        device = self.feature_mixer.mlp.fc1.weight.device
        with device:
            self.channel_feature_mixer = Mixer(1, channels, self.width, **self.words)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for mixer in (self.channel_feature_mixer, self.patch_mixer, self.feature_mixer):
            x = x if mixer is None else mixer(x)
        return x


class Level(nn.Module):
    """Layers that see `factor` times as many patches, each so much shorter: (n, d) as (n factor, d / factor)."""

    def __init__(
        self, layers: int, factor: int, patches: int, width: int, channels: int | None, **words: object
    ) -> None:
        super().__init__()
        self.factor = factor
        made = (MixerLayer(patches * factor, width // factor, channels, **words) for _ in range(layers))
        self.mixer_layers = nn.ModuleList(made)


class Mixers(nn.Module):
    """A stack of layers, plain or in adaptive levels, the one of most patches first.

    Args:
        layers: of each level, or in all.
        levels: L; level i has 2^i times as many patches, for i = L - 1 to 0; one that would leave patches of at most 4
            entries keeps them whole. 0: plain layers.
        patches, width, channels, words: see `MixerLayer`.
    """

    def __init__(
        self, layers: int, levels: int, patches: int, width: int, channels: int | None = None, **words: object
    ) -> None:
        super().__init__()
        if not levels:
            self.mixers = nn.ModuleList(MixerLayer(patches, width, channels, **words) for _ in range(layers))
            return
        factors = [level_factor(width, level) for level in reversed(range(levels))]
        self.mixers = nn.ModuleList(Level(layers, k, patches, width, channels, **words) for k in factors)

    def layers(self) -> list[tuple[str, MixerLayer, int]]:
        """Each layer in order: its path from here, itself, and the factor of its level."""
        found: list[tuple[str, MixerLayer, int]] = []
        for number, mixer in enumerate(self.mixers):
            if isinstance(mixer, MixerLayer):
                found.append((f"mixers.{number}", mixer, 1))
            elif isinstance(mixer, Level):
                for place, layer in enumerate(mixer.mixer_layers):
                    assert isinstance(layer, MixerLayer)
                    found.append((f"mixers.{number}.mixer_layers.{place}", layer, mixer.factor))
        return found

    def forward(self, x: Tensor) -> Tensor:
        for _, layer, factor in self.layers():
            x = through(layer, x, factor)
        return x


def level_factor(width: int, level: int) -> int:
    """K of a level: 2^level, or 1 where a patch would have no more than 4 entries.

    Raises:
        ValueError: the width is no multiple of it.
    """
    factor: int = 2**level
    factor = 1 if width // factor <= 4 else factor
    if width % factor:
        raise ValueError(f"d_model={width} is no multiple of {factor}")
    return factor


def through(layer: MixerLayer, x: Tensor, factor: int) -> Tensor:
    """The layer on (B, C, n, d) seen as (B, C, n factor, d / factor)."""
    batch, channels, patches, width = x.shape
    out: Tensor = layer(x.reshape(batch, channels, patches * factor, width // factor))
    return out.reshape(x.shape)

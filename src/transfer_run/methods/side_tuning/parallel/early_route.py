"""SHERL's early route, the multi-tiered sensing adapter: shallow taps vote, and those that say the same share a vote.

    E_i  shallow taps, e  the deepest one, each projected to width r, one token at a time
    rho_i = sum_j relu(cos(E_i, E_j))                redundancy, its own 1 included
    p_i   = relu(w . (E_i * e) + b) / rho_i          divided by their sum
    z     = sum_i p_i E_i + e
    V     = up(z) + tanh(g / T) H_last

Diao et al., ECCV 2024 (arXiv 2407.07523), section 3.2. No token sees another one, so there is no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.methods.side_tuning.parallel.interaction import down
from transfer_run.methods.side_tuning.parallel.tap_tuning import conv_norm, flat, recomputed, widened, window


class GluDown(nn.Module):
    """F = (W_2 y + y) * sigmoid(W_3 y), y = relu(W_1 H), D -> r (T5, CLIP-ViL)."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(width, side), nn.Linear(side, side), nn.Linear(side, side)

    def forward(self, hidden: Tensor) -> Tensor:
        y = self.fc1(hidden).relu()
        return (self.fc2(y) + y) * self.fc3(y).sigmoid()


def redundancy(features: Tensor, eps: float) -> Tensor:
    """rho (..., n) of n features (..., n, r); 1 where a feature is exactly zero, whose similarities all are 0."""
    unit = features / (features.norm(dim=-1, keepdim=True) + eps)
    rho = (unit @ unit.transpose(-1, -2)).relu().sum(-1)
    return rho.masked_fill(rho == 0, 1.0)


class Votes(nn.Module):
    """z = sum_i p_i E_i + e, for every token by itself.

    Args:
        side: r.
        eps: of both normalisations.
        mlp: inner width D of u <- LN(W relu(W u)) before e is added (MDETR); None: without.
    """

    def __init__(self, side: int, *, eps: float, mlp: int | None = None) -> None:
        super().__init__()
        self.score = nn.Linear(side, 1)
        self.eps = eps
        inner = [] if mlp is None else [nn.Linear(side, mlp), nn.ReLU(), nn.Linear(mlp, side), nn.LayerNorm(side)]
        self.mlp = nn.Sequential(*inner)

    def forward(self, features: Sequence[Tensor], guide: Tensor) -> Tensor:
        """z (..., r) of features and guide (..., r)."""
        stacked = torch.stack(tuple(features), dim=-2)
        weights = self.weights(stacked, guide).to(stacked.dtype)
        summed = (weights.unsqueeze(-2) @ stacked).squeeze(-2)
        return self.mlp(summed) + guide

    def weights(self, features: Tensor, guide: Tensor) -> Tensor:
        """p (..., n) of features (..., n, r): sums to 1, or to 0 where no score is positive."""
        scores = self.score(features * guide.unsqueeze(-2)).squeeze(-1).relu()
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / redundancy(features, self.eps)
        return scores / (scores.sum(-1, keepdim=True) + self.eps)


class Gate(nn.Module):
    """V = up + tanh(g / T) last, g a trained number; at 0 the last state adds nothing.

    Args:
        start: g before training.
        temperature: T.
    """

    def __init__(self, start: float, temperature: float) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.full((1,), float(start)))
        self.temperature = temperature

    def forward(self, up: Tensor, last: Tensor) -> Tensor:
        return up + torch.tanh(self.g / self.temperature) * last


class Sensing(nn.Module):
    """V (B, T, D) from taps of T tokens.

    Args:
        width: D.
        side: r.
        taps: numbers of the taps, the guide last.
        form: `down` (`norm` or `glu`), `up_norm`, `up_dropout`, `eps`, `guide_mlp`, `gate_init`, `gate_T`.
        norm_eps: of the norm behind the output map.
    """

    def __init__(
        self, width: int, side: int, taps: Sequence[int], form: Mapping[str, Any], *, norm_eps: float = 1e-12,
        lean: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        kind: Any = GluDown if form["down"] == "glu" else down
        self.downs = nn.ModuleDict({str(index): kind(width, side) for index in taps})
        self.votes = Votes(side, eps=form["eps"], mlp=width if form["guide_mlp"] else None)
        norm = [nn.LayerNorm(width, eps=norm_eps)] if form["up_norm"] else []
        self.up = nn.Sequential(nn.ReLU(), nn.Linear(side, width), *norm)
        self.dropout = nn.Dropout(form["up_dropout"])
        self.gate = Gate(form["gate_init"], form["gate_T"])
        self.lean = lean

    def forward(self, taps: Sequence[Tensor], last: Tensor) -> Tensor:
        """The taps (B, T, D) in the order of their maps, and the state that would have gone on (B, T, D)."""

        def run(*taps: Tensor) -> Tensor:
            narrow = [module(widened(tap, module)) for module, tap in zip(self.downs.values(), taps, strict=True)]
            up: Tensor = self.up(self.votes(narrow[:-1], narrow[-1]))
            return up

        return self.gate(self.dropout(recomputed(self.lean, run, *taps)), last)


class ConvSensing(nn.Module):
    """V (B, C, h, w) from the stages of a CNN, at the size of the last one, with 1x1 convolutions and batch norms.

    Args:
        channels: of the taps by number, the guide last.
        side: r.
        form: `eps`, `gate_init`, `gate_T`.
    """

    def __init__(self, channels: Mapping[int, int], side: int, form: Mapping[str, Any], *, lean: bool = True) -> None:
        super().__init__()
        self.downs = nn.ModuleDict({str(index): conv_norm(width, side) for index, width in channels.items()})
        self.votes = Votes(side, eps=form["eps"])
        self.up = nn.Sequential(conv_norm(side, list(channels.values())[-1]), nn.ReLU())
        self.gate = Gate(form["gate_init"], form["gate_T"])
        self.lean = lean

    def forward(self, taps: Sequence[Tensor], last: Tensor) -> Tensor:
        """The stages (B, C_j, H_j, W_j), the guide (B, C, h, w) last, and the state that would have gone on."""
        guide = taps[-1]
        narrow = []
        for module, tap in zip(self.downs.values(), taps, strict=True):
            rate, wide = window(tap, guide), widened(tap, module)
            narrow.append(flat(module(F.max_pool2d(wide, rate) + F.avg_pool2d(wide, rate))))

        def run(*features: Tensor) -> Tensor:
            return self.votes(features[:-1], features[-1])

        tokens = recomputed(self.lean, run, *narrow)  # batch norms may not run twice: they stay outside
        maps = tokens.transpose(1, 2).unflatten(2, tuple(guide.shape[-2:]))
        return self.gate(self.up(maps), last)


class PooledSensing(nn.Module):
    """Y = a + W relu(z) for a global vector a (CLIP4Clip): a first votes among the tokens of a tap, then among taps.

        E_l = sum_t w_t F_l[t] + k_l F_l[pos],   w = relu(W_l (q * F_l)) / its sum,   k_l = sigmoid(g_l / T) or 1

    Args:
        widths: D of every tap, the last block's among them.
        out: E, the width of a.
        side: r.
        eps: of the normalisations.
        gated: k_l are trained (g_l starts at 1); else 1.
        temperature: T.
    """

    def __init__(
        self, widths: Sequence[int], out: int, side: int, *, eps: float, gated: bool, temperature: float,
        lean: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.guide = nn.Sequential(nn.ReLU(), nn.Linear(out, side))
        self.downs = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(width, side)) for width in widths)
        self.spatial = nn.ModuleList(nn.Linear(side, 1) for _ in widths)
        self.g = nn.Parameter(torch.ones(len(widths))) if gated else None
        self.votes = Votes(side, eps=eps)
        self.up = nn.Sequential(nn.ReLU(), nn.Linear(side, out))
        self.eps, self.temperature, self.lean = eps, temperature, lean

    def forward(self, taps: Sequence[Tensor], anchor: Tensor, mask: Tensor | None, position: Tensor) -> Tensor:
        """(B, E); arguments as of UniPT's pooled form."""

        def run(anchor: Tensor, mask: Tensor | None, position: Tensor, *taps: Tensor) -> Tensor:
            query = self.guide(widened(anchor, self.guide))
            features = [self.summary(index, tap, query, mask, position) for index, tap in enumerate(taps)]
            return anchor + self.up(self.votes(features, query))

        return recomputed(self.lean, run, anchor, mask, position, *taps)

    def summary(self, index: int, tap: Tensor, query: Tensor, mask: Tensor | None, position: Tensor) -> Tensor:
        """E_l (B, r)."""
        features = self.downs[index](widened(tap, self.downs[index]))
        scores = self.spatial[index](query.unsqueeze(1) * features)
        if mask is not None:
            scores = scores * mask.to(scores.dtype).unsqueeze(-1)
        weights = scores.relu()
        weights = weights / (weights.sum(1, keepdim=True) + self.eps)
        own = features[torch.arange(len(features), device=features.device), position]
        if self.g is not None:
            own = own * torch.sigmoid(self.g[index] / self.temperature)
        return (weights * features).sum(1) + own

"""How VQT makes one feature of the final feature and the layers' summaries (paper section 3.3; released code).

    f_0 (B, D), Z_1 ... Z_L (B, T, D)  ─▶  h (B, F)

In the linear variants each of the L + 1 parts is divided by its own length, a layer's T summaries together; where they
are combined by attention every row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.attention import attend, split_heads

Kind = Literal["concat", "pool", "weighted", "attention", "mlp_attention"]


class Concat(nn.Module):
    """h = [f_0, f_1, ..., f_L], each of length 1; f_m is Z_m row by row, the mean over its T rows, or their weighted
    sum.

    Args:
        kind: `concat`, `pool` or `weighted`.
        depth, tokens, width: L, T, D.
        normalize: divide each part by its L2 norm.
    """

    def __init__(self, kind: Kind, depth: int, tokens: int, width: int, *, normalize: bool) -> None:
        super().__init__()
        self.kind, self.normalize = kind, normalize
        self.weights = nn.Parameter(torch.ones(depth, tokens)) if kind == "weighted" and tokens else None
        rows = tokens if kind == "concat" else min(tokens, 1)
        self.features = width * (1 + depth * rows)

    def forward(self, final: Tensor, summaries: Sequence[Tensor]) -> Tensor:
        parts = [final, *(self._part(index, summary) for index, summary in enumerate(summaries))]
        if self.normalize:
            parts = [F.normalize(part, dim=1) for part in parts]
        return torch.cat(parts, dim=1)

    def _part(self, index: int, summary: Tensor) -> Tensor:
        if self.weights is not None:
            return torch.einsum("t,btd->bd", self.weights[index].to(summary.dtype), summary)
        return summary.mean(1) if self.kind == "pool" else summary.flatten(1)


class Perceptron(nn.Module):
    """D -> 4 D -> D with exact GELU and dropout behind both maps."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout),
                                    nn.Linear(4 * width, width), nn.Dropout(dropout))  # fmt: skip
        for linear in (self.layers[0], self.layers[3]):
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class AttentionCombiner(nn.Module):
    """h = the first row of a trained pre-norm block over [f_0; Z_1; ...; Z_L], every row of length 1 (ablation).

    Args:
        depth, width, heads: L, D, and the heads of the block.
        mlps: send each layer's summaries through an MLP of its own and add a layer position to all rows first.
        dropout: of the MLPs.
    """

    def __init__(self, depth: int, width: int, heads: int, *, mlps: bool, dropout: float = 0.1) -> None:
        super().__init__()
        self.features, self.heads = width, heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = Perceptron(width, dropout)
        self.layer_mlps = nn.ModuleList(Perceptron(width, dropout) for _ in range(depth)) if mlps else None
        self.positions = nn.Parameter(torch.zeros(depth + 1, width)) if mlps else None

    def forward(self, final: Tensor, summaries: Sequence[Tensor]) -> Tensor:
        rows = [F.normalize(part, dim=-1) for part in (final.unsqueeze(1), *summaries)]
        if self.layer_mlps is not None and self.positions is not None:
            rows[1:] = [mlp(row) for mlp, row in zip(self.layer_mlps, rows[1:], strict=True)]
            rows = [row + place for row, place in zip(rows, self.positions, strict=True)]
        every = torch.cat(rows, dim=1)
        first, normed = every[:, :1], self.norm1(every)
        width = first.shape[-1] // self.heads
        q, k, v = (
            split_heads(part(x), width) for part, x in ((self.q, normed[:, :1]), (self.k, normed), (self.v, normed))
        )
        first = first + self.out(attend(q, k, v))
        combined: Tensor = (first + self.mlp(self.norm2(first)))[:, 0]  # no other row is read
        return combined


def build_combiner(
    kind: Kind, depth: int, tokens: int, width: int, heads: int, *, normalize: bool
) -> Concat | AttentionCombiner:
    """The combiner of `depth` layers with `tokens` summaries each; its `features` is F."""
    if kind in ("attention", "mlp_attention"):
        return AttentionCombiner(depth if tokens else 0, width, heads, mlps=kind == "mlp_attention")
    return Concat(kind, depth, tokens, width, normalize=normalize)

"""What may change the frozen stream beside VQT: prompts (VPT) or adapters (AdaptFormer). Gradients then visit it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, State


class Prompts(nn.Module):
    """VPT (Jia et al. 2022, arXiv 2203.12119): trained tokens in the sequence, keys and values like any other.

    Args:
        depth: blocks that get prompts of their own in the place of the last block's outputs (VPT-deep); 1: only the
            first block's are new (VPT-shallow).
        tokens, width: prompts a block, D.
        bound: of the uniform draw they start from.
        dropout: of the prompts.
    """

    def __init__(self, depth: int, tokens: int, width: int, *, bound: float, dropout: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(depth, tokens, width).uniform_(-bound, bound))
        self.dropout = dropout

    def before(self, backbone: Backbone, state: State) -> State:
        """The state as block `state.index` shall read it."""
        if state.index >= len(self.rows):
            return state
        tokens = self.rows[state.index].expand(state.hidden.shape[0], -1, -1)
        tokens = F.dropout(tokens, self.dropout, self.training)
        if state.index == 0:
            return backbone.prepend(state, tokens)
        return replace(state, hidden=torch.cat([tokens.to(state.hidden.dtype), state.hidden[:, state.prefix :]], dim=1))


class Adapter(nn.Module):
    """s * up(dropout(relu(down(x)))) beside a feed-forward part that reads x; starts at zero.

    Args:
        width, inner: D and the bottleneck.
        scale: s.
    """

    def __init__(self, width: int, inner: int, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self._read: list[Tensor] = []

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the feed-forward's first map."""
        self._read[:] = [args[0]]

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the feed-forward's last map."""
        change: Tensor = self.up(self.dropout(self.down(self._read.pop()).relu()))
        return output + self.scale * change


class AdaptFormer(nn.Module):
    """AdaptFormer (Chen et al. 2022, arXiv 2205.13535): an adapter beside every feed-forward part, which reads what
    that part reads, LN2 of the stream. Query tokens pass it like all others.

    Args:
        backbone, stack: whose blocks get one.
        inner, scale, dropout: as in `Adapter`.
    """

    def __init__(self, backbone: Backbone, stack: str, *, inner: int, scale: float, dropout: float = 0.1) -> None:
        super().__init__()
        width = backbone.width(stack)
        self.adapters = nn.ModuleList()
        for index in range(backbone.depth(stack)):
            adapter = Adapter(width, inner, scale=scale, dropout=dropout)
            backbone.part(stack, index, "mlp_in").register_forward_pre_hook(adapter.read)
            backbone.part(stack, index, "mlp_out").register_forward_hook(adapter.add)
            self.adapters.append(adapter)

    def before(self, backbone: Backbone, state: State) -> State:
        """Nothing to put in."""
        return state


def build_addon(
    kind: str, backbone: Backbone, stack: str, *, tokens: int, deep: bool, bound: float, dropout: float, inner: int,
    scale: float,
) -> Prompts | AdaptFormer | None:  # fmt: skip
    """`vpt`, `adaptformer` or `none` on a stack; `tokens`, `deep`, `bound`, `dropout` are of the prompts."""
    if kind == "vpt":
        return Prompts(
            backbone.depth(stack) if deep else 1, tokens, backbone.width(stack), bound=bound, dropout=dropout
        )
    return AdaptFormer(backbone, stack, inner=inner, scale=scale) if kind == "adaptformer" else None

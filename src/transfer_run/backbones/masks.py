"""Masks on the attention heads and the feed-forward neurons of a block, for methods that score or prune them.

    attention:  heads beside one another (B, T, H * d) ──* mask of heads (H,)──▶ out
    mlp:        neurons (B, T, N) ──* mask of neurons (N,)──▶ mlp_out

The mask may ask for gradients, though the block is frozen: what a head or a neuron is worth is the loss's gradient at a
mask of ones (Michel et al. 2019, section 4.1).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from transfer_run.backbones.base import Backbone


def mask_heads(backbone: Backbone, stack: str, index: int, mask: Tensor) -> RemovableHandle:
    """Multiply each head of the block's self-attention by its entry of `mask` (heads,), until removed."""
    _refuse_other(mask, backbone.heads(stack), "attention heads")

    def masked(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        each = args[0].unflatten(-1, (len(mask), -1)) * mask.to(args[0]).unsqueeze(-1)
        return (each.flatten(-2), *args[1:])

    return backbone.part(stack, index, "out").register_forward_pre_hook(masked)


def mask_neurons(backbone: Backbone, stack: str, index: int, mask: Tensor) -> RemovableHandle:
    """Multiply each neuron of the block's feed-forward part by its entry of `mask` (neurons,), until removed."""

    def masked(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse_other(mask, args[0].shape[-1], "neurons")
        return (args[0] * mask.to(args[0]), *args[1:])

    return backbone.part(stack, index, "mlp_out").register_forward_pre_hook(masked)


def _refuse_other(mask: Tensor, count: int, what: str) -> None:
    if mask.shape != (count,):
        raise ValueError(f"a mask of {count} {what} has the shape ({count},), not {tuple(mask.shape)}")

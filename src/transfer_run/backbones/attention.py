"""Attention of a few extra queries over a block's keys and values, for `Backbone.attend_queries`."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def split_heads(x: Tensor, width: int) -> Tensor:
    """(B, T, heads * width) -> (B, heads, T, width)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, dropout: float = 0.0, *,
    eager: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale) v, heads merged.

    Args:
        q: (B, heads, R, width).
        k, v: (B, key heads, T, width); with fewer key heads each serves a group of query heads.
        mask: (B, T), 1 = visible; None where every position is.
        scale: default 1 / sqrt(width).
        dropout: of the attention weights; 0 outside training.
        eager: make the matrix of weights, (B, heads, R, T), as older code does, instead of a fused kernel's call.

    Returns:
        (B, R, heads * width).
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    visible = None if mask is None else mask[:, None, None, :].bool()
    if eager:
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores if visible is None else scores.masked_fill(~visible, -math.inf)
        out = F.dropout(scores.softmax(-1), dropout) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).flatten(2)

"""Prefixes: trained rows that stand before an attention's keys and values. Li and Liang 2021; arXiv 2110.04366.

    K' = [P_k ; K]    V' = [P_v ; V]    each head with its own columns of P; every query sees the whole prefix

which is the same as (1 - g) Attn(q, K, V) + g Attn(q, P_k, P_v) with g the share of the softmax that the prefix gets
(equations 7 to 9). Positions do not shift and caches are not touched. transformers' models take the function below
through their attention interface; timm's attention is replaced by a module with the same children.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from transfer_run.backbones.base import Backbone
from transfer_run.methods.inside.precision import trained_type
from transfer_run.methods.inside.targets import Target, out_features, third_of

Rows = tuple[Tensor, Tensor]
Composition = Literal["concat", "gated", "ungated"]
_NAME = "prefix_"


# ---- where the rows come from
class PrefixTable(nn.Module):
    """Free rows, N(0, 0.02^2): P_k and P_v of `depth` attentions, each (length, width)."""

    def __init__(self, depth: int, length: int, width: int, like: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(like.new_empty(depth, 2, length, width, dtype=trained_type(like)).normal_(std=0.02))

    def forward(self, index: int) -> Rows:
        """P_k and P_v of attention `index`."""
        return self.rows[index, 0], self.rows[index, 1]


class PrefixMLP(nn.Module):
    """Rows from an MLP, for training only: P = W_2 tanh(W_1 E), E (length, width) ~ N(0, 1).

    The output is laid out attention by attention: key of 0, value of 0, key of 1, ... A call computes one attention's
    share of it.

    Args:
        hidden: width of the MLP (the paper: 800).
    """

    def __init__(self, depth: int, length: int, width: int, hidden: int, like: Tensor) -> None:
        super().__init__()
        options: Any = {"device": like.device, "dtype": trained_type(like)}
        self.depth, self.width = depth, width
        self.embedding = nn.Parameter(torch.empty(length, width, **options).normal_())
        self.inner = nn.Linear(width, hidden, **options)
        self.outer = nn.Linear(hidden, depth * 2 * width, **options)

    def forward(self, index: int) -> Rows:
        columns = slice(index * 2 * self.width, (index + 1) * 2 * self.width)
        hidden = torch.tanh(self.inner(self.embedding))
        keys, values = F.linear(hidden, self.outer.weight[columns], self.outer.bias[columns]).chunk(2, -1)
        return keys, values

    @torch.no_grad()
    def table(self) -> PrefixTable:
        """The rows alone, as they are now."""
        length = self.embedding.shape[0]
        table = PrefixTable(self.depth, length, self.width, self.embedding.detach())
        for index in range(self.depth):
            table.rows[index].copy_(torch.stack(self(index)))
        return table


class Prefixes(nn.ModuleDict):
    """The rows of a whole model, one source for each kind of attention (`encoder_self`, `decoder_cross`, ...)."""

    def rows(self, kind: str, index: int) -> Rows:
        found: Rows = self[kind](index)
        return found

    def settle(self) -> None:
        """Keep the rows, drop the MLPs that made them."""
        for kind, source in list(self.items()):
            if isinstance(source, PrefixMLP):
                self[kind] = source.table()

    def counted(self) -> int:
        """Scalars of the rows, which are all that is reported and shipped."""
        made = sum(2 * s.depth * s.embedding.numel() for s in self.values() if isinstance(s, PrefixMLP))
        return made + sum(s.rows.numel() for s in self.values() if isinstance(s, PrefixTable))


def make_prefixes(
    backbone: Backbone, found: Sequence[Target], length: int, hidden: int | None
) -> tuple[Prefixes, list[Callable[[], Rows]]]:
    """Rows for the attentions that the targets belong to, as wide as the targets' own outputs.

    Args:
        hidden: width of the MLPs that the rows come from, one MLP for each kind of attention; None: free rows.

    Returns:
        The module that makes the rows, and for each target a function that gives its own.
    """
    by_kind: dict[str, list[Target]] = {}
    for target in found:
        by_kind.setdefault(_kind(target), []).append(target)
    prefixes = Prefixes()
    for kind, members in by_kind.items():
        linear = backbone.get_submodule(members[0].path)
        columns, like = third_of(members[0], out_features(linear)), next(linear.parameters()).detach()
        shape = (len(members), length, columns.stop - columns.start)
        prefixes[kind] = PrefixTable(*shape, like) if hidden is None else PrefixMLP(*shape, hidden, like)
    return prefixes, [partial(prefixes.rows, _kind(target), by_kind[_kind(target)].index(target)) for target in found]


def _kind(target: Target) -> str:
    return f"{target.stack}_{'cross' if target.part.startswith('cross_') else 'self'}"


@dataclass
class LayerPrefix:
    """What one attention needs: its rows, and how they are composed with its own keys and values.

    `ungated` adds softmax(q P_k^T) P_v to the head as it is; `gated` is `concat` by way of the gate. `dropout` is of
    single entries of the rows, in training, for each example by itself.
    """

    rows: Callable[[], Rows]
    composition: Composition = "concat"
    dropout: float = 0.0


# ---- the attention function of transformers' models
def prefix_attention(
    base: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of `module` with the prefix it carries (attribute `prefix`); without one, `base` alone.

    Args:
        query: (B, H, Q, d); key, value: (B, H', K, d), H' dividing H; attention_mask: None, or broadcast to
            (B, 1, Q, K), boolean or additive; position_bias: broadcast to (B, H, Q, K).

    Returns:
        The heads (B, Q, H, d), and None or the weights.
    """
    prefix: LayerPrefix | None = getattr(module, "prefix", None)
    call = {"dropout": dropout, "scaling": scaling, "position_bias": position_bias, **kwargs}
    if prefix is None:
        return base(module, query, key, value, attention_mask, **call)
    if attention_mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        attention_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    heads = (row.unflatten(-1, (-1, key.shape[-1])).transpose(0, 1).to(key.dtype) for row in prefix.rows())
    prefix_key, prefix_value = (row.expand(key.shape[0], -1, -1, -1) for row in heads)
    if prefix.dropout and module.training:
        prefix_key, prefix_value = (F.dropout(row, prefix.dropout) for row in (prefix_key, prefix_value))
    if prefix.composition == "concat":
        length = prefix_key.shape[2]
        key, value = torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)
        call |= {"position_bias": _left_pad(position_bias, length, 0.0), "is_causal": False}
        return base(module, query, key, value, _left_pad(attention_mask, length, True), **call)
    groups = query.shape[1] // key.shape[1]
    prefix_key, prefix_value = repeat_kv(prefix_key, groups), repeat_kv(prefix_value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ prefix_key.transpose(2, 3) * scale
    change = (F.dropout(logits.softmax(-1), dropout, module.training) @ prefix_value).transpose(1, 2)
    heads_out, weights = base(module, query, key, value, attention_mask, **call)
    if prefix.composition == "ungated":
        return heads_out + change, weights
    own = query @ repeat_kv(key, groups).transpose(2, 3) * scale + _additive(attention_mask, query.dtype)
    own = own if position_bias is None else own + position_bias
    gate = torch.sigmoid(logits.logsumexp(-1) - own.logsumexp(-1)).transpose(1, 2).unsqueeze(-1)
    return (1 - gate) * heads_out + gate * change, weights


def _left_pad(mask: Tensor | None, length: int, fill: float | bool) -> Tensor | None:
    """The mask or bias with `length` more keys in front: visible (True, or 0 in an additive mask)."""
    if mask is None:
        return None
    return F.pad(mask, (length, 0), value=fill if mask.dtype == torch.bool else 0.0)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    if mask is None or mask.dtype != torch.bool:
        return 0.0 if mask is None else mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scale + bias + mask) v with the weights in memory; shapes as in `prefix_attention`."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + _additive(attention_mask, scores.dtype)
    weights = F.dropout(scores.softmax(-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _whole_mask(mask: Callable[..., Tensor | None], **kwargs: Any) -> Tensor | None:
    """A mask that is never left to the kernel's causal flag, which would not know of the prefix."""
    return mask(**{**kwargs, "allow_is_causal_skip": False})


for _base, _function, _mask in (("sdpa", sdpa_attention_forward, sdpa_mask), ("eager", eager_attention, eager_mask)):
    AttentionInterface.register(_NAME + _base, partial(prefix_attention, _function))
    AttentionMaskInterface.register(_NAME + _base, partial(_whole_mask, _mask))


def switch_attention(model: PreTrainedModel) -> bool:
    """Let the model's attentions look for a prefix; keeps to the kernel (`eager`, `sdpa`) that is set at the time.

    Returns:
        Whether the model's attention can be switched at all.
    """
    present = model.config._attn_implementation or "eager"
    if not present.startswith(_NAME):
        model.set_attn_implementation(_NAME + (present if present == "eager" else "sdpa"))
    return str(model.config._attn_implementation).startswith(_NAME)


# ---- timm
class PrefixAttention(nn.Module):
    """timm's self-attention of a ViT with a prefix; takes over the children under their names.

    Args:
        attention: timm's `Attention`, without a gate; prefix: its rows and how they are composed.
    """

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    attn_drop: nn.Dropout
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, attention: nn.Module, prefix: LayerPrefix) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.heads, self.prefix, self.fused_attn = attention.num_heads, prefix, bool(attention.fused_attn)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        base: Any = sdpa_attention_forward if self.fused_attn else eager_attention
        rate = self.attn_drop.p if self.training else 0.0
        out, _ = prefix_attention(base, self, q, k, v, attn_mask, dropout=rate)
        result: Tensor = self.proj_drop(self.proj(self.norm(out.flatten(2))))
        return result

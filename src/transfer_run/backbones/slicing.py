"""Cutting heads and neurons out of a transformer's blocks: the matrices really become smaller.

    q, k, v (or the thirds of qkv): rows of the heads    out: their columns    mlp_in: rows    mlp_out: columns

What was cut cannot be said in a library's config, which has one number of heads for all blocks: such a model is read
by `transfer_run.load`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError

_COUNTS = (("num_attention_heads", "all_head_size"), ("num_heads", "attn_dim"))
"""How the attention modules of transformers and of timm name their number of heads, and its width in all."""


def check_sliceable(backbone: Backbone, stack: str, where: str) -> None:
    """Raises UserError where a block's attention is not made of plain matrices, a row for each place of a head."""
    for index in range(backbone.depth(stack)):
        attention = backbone.part(stack, index, "attention")
        named = any(hasattr(attention, count) and hasattr(attention, width) for count, width in _COUNTS)
        parts = backbone.parts(stack, index)
        plain = all(type(backbone.get_submodule(parts[name])) is nn.Linear
                    for name in ("q", "k", "v", "qkv", "out", "mlp_in", "mlp_out") if name in parts)  # fmt: skip
        joined = getattr(attention, "gate", None) is not None or type(getattr(attention, "norm", None)) is nn.LayerNorm
        if not named or not plain or joined or "mlp_gate" in parts or hasattr(attention, "query_proj"):
            raise UserError(
                f"Heads cannot be cut out of the blocks of {backbone.config.get('name')}: their attention is not all "
                "plain matrices.",
                where=where,
                remedy="leave the matrices as they are, with zeros where units are masked",
            )


def keep_units(backbone: Backbone, stack: str, index: int, heads: Tensor | None, neurons: Tensor | None) -> None:
    """Keep these heads and neurons of a block, in their order; None: all.

    Args:
        heads, neurons: (n,) int64, at least one of each.
    """
    parts = backbone.parts(stack, index)
    if heads is not None:
        attention = backbone.get_submodule(parts["attention"])
        width = head_width(backbone, stack, index)
        columns = (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()
        if "qkv" in parts:
            whole = backbone.get_submodule(parts["out"]).in_features
            thirds = torch.cat([columns + third * whole for third in range(3)])  # type: ignore[operator]
            backbone.set_submodule(parts["qkv"], _sliced(backbone.get_submodule(parts["qkv"]), rows=thirds))
        for name in ("q", "k", "v"):
            if name in parts:
                backbone.set_submodule(parts[name], _sliced(backbone.get_submodule(parts[name]), rows=columns))
        backbone.set_submodule(parts["out"], _sliced(backbone.get_submodule(parts["out"]), columns=columns))
        for count, all_of in _COUNTS:
            if hasattr(attention, count):
                setattr(attention, count, len(heads))
                setattr(attention, all_of, len(columns))
    if neurons is not None:
        backbone.set_submodule(parts["mlp_in"], _sliced(backbone.get_submodule(parts["mlp_in"]), rows=neurons))
        backbone.set_submodule(parts["mlp_out"], _sliced(backbone.get_submodule(parts["mlp_out"]), columns=neurons))


def head_width(backbone: Backbone, stack: str, index: int) -> int:
    """Places of one head in the block's attention."""
    attention = backbone.part(stack, index, "attention")
    heads = next(getattr(attention, count) for count, _ in _COUNTS if hasattr(attention, count))
    return int(backbone.part(stack, index, "out").in_features) // int(heads)  # type: ignore[arg-type]


def _sliced(linear: nn.Module, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    assert isinstance(linear, nn.Linear)
    weight: Tensor = linear.weight.detach()
    bias: Tensor | None = None if linear.bias is None else linear.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    made.weight = nn.Parameter(weight.clone(), linear.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), linear.weight.requires_grad)
    return made.train(linear.training)

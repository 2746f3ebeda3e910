"""The backbone's blocks at a width divided by r: one function per family, and `side_blocks` that picks it.

A side block is the backbone's block class with every width divided by r and the same number of heads, so its
parameters bear the names of the backbone's, which is what `pruning.py` relies on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.ladder.side_blocks import (
    ClipBlocks,
    DebertaBlocks,
    DecoderBlocks,
    EncoderBlocks,
    SideBlocks,
    T5Blocks,
)


def _config(backbone: Backbone) -> Any:
    model: Any = backbone.model
    return model.config


def _narrow_norm(norm: nn.Module | None, width: int) -> nn.Module | None:
    if norm is None or isinstance(norm, nn.Identity):
        return None
    wide: Any = norm
    eps = wide.eps if hasattr(wide, "eps") else wide.variance_epsilon
    narrow: nn.Module = type(wide)(width, eps=eps)
    return narrow


def _narrow_config(source: Any, reduction: int, widths: Sequence[str]) -> Any:
    config = copy.deepcopy(source)
    for name in widths:
        setattr(config, name, getattr(source, name) // reduction)
    return config


def _block(kind: type[nn.Module], config: Any, rank: int, **extra: Any) -> nn.Module:
    """A block of the library; `rank` is its place in the cache, the place among the kept ones."""
    if "layer_idx" in inspect.signature(kind.__init__).parameters:
        extra["layer_idx"] = rank
    return kind(config, **extra)


def t5_blocks(backbone: Backbone, stack: str, kept: Sequence[int], reduction: int, eager: bool) -> SideBlocks:
    """T5: d_model, d_kv and d_ff divided by r; d_kv must leave at least 1."""
    source: Any = backbone.get_submodule(f"model.{stack}").config
    _require(lambda r: r <= source.d_kv, backbone, reduction, f"d_kv is {source.d_kv} and must leave d_kv // r >= 1")
    config = _narrow_config(source, reduction, ("d_model", "d_kv", "d_ff"))
    kind = type(backbone.blocks(stack)[0])
    blocks = {i: _block(kind, config, rank, has_relative_attention_bias=rank == 0) for rank, i in enumerate(kept)}
    return T5Blocks(blocks, _narrow_norm(backbone.final_norm(stack), config.d_model), source, config, eager)


def encoder_blocks(backbone: Backbone, stack: str, kept: Sequence[int], reduction: int, eager: bool) -> SideBlocks:
    """BERT-like: hidden and intermediate width divided by r; the heads must divide the narrow width."""
    source, width = _config(backbone), _width_for_heads(backbone, stack, reduction)
    inner = "encoder_ffn_dim" if source.model_type == "bart" else "intermediate_size"
    config = _narrow_config(source, reduction, ("hidden_size", inner))
    kind = type(backbone.blocks(stack)[0])
    family = DebertaBlocks if source.model_type == "deberta-v2" else EncoderBlocks
    if family is DebertaBlocks and hasattr(config, "attention_head_size"):
        config.attention_head_size = width // backbone.heads(stack)
    blocks = {i: _block(kind, config, rank) for rank, i in enumerate(kept)}
    return family(blocks, _narrow_norm(backbone.final_norm(stack), width), source, config, eager)


def decoder_blocks(backbone: Backbone, stack: str, kept: Sequence[int], reduction: int, eager: bool) -> SideBlocks:
    """GPT-2 and rotary decoders: hidden, head and feed-forward width divided by r, heads and key groups the same."""
    source = _config(backbone)
    kind = type(backbone.blocks(stack)[0])
    rotary = next((m for m in backbone.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
    if rotary is None:
        _width_for_heads(backbone, stack, reduction)
        config = _narrow_config(source, reduction, ("n_embd",))
        config.n_inner = (source.n_inner or 4 * source.n_embd) // reduction
    else:
        head = getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads
        _require(lambda r: head // r >= 2 and head // r % 2 == 0, backbone, reduction,
                 f"rotary angles turn pairs, so a head of {head} // r channels must have an even number")  # fmt: skip
        config = _narrow_config(source, reduction, ("hidden_size", "intermediate_size"))
        config.head_dim = head // reduction
        rotary = type(rotary)(config)
    blocks = {i: _block(kind, config, rank) for rank, i in enumerate(kept)}
    norm = _narrow_norm(backbone.final_norm(stack), config.hidden_size)
    return DecoderBlocks(blocks, norm, source, config, eager, rotary=rotary)


def clip_blocks(backbone: Backbone, stack: str, kept: Sequence[int], reduction: int, eager: bool) -> SideBlocks:
    """A tower of CLIP: hidden and feed-forward width divided by r; the heads must divide the narrow width."""
    width = _width_for_heads(backbone, stack, reduction)
    first: Any = backbone.blocks(stack)[0]
    source = first.self_attn.config
    config = _narrow_config(source, reduction, ("hidden_size", "intermediate_size"))
    blocks = {i: _block(type(first), config, rank) for rank, i in enumerate(kept)}
    return ClipBlocks(blocks, _narrow_norm(backbone.final_norm(stack), width), source, config, eager)


def vit_blocks(backbone: Backbone, stack: str, kept: Sequence[int], reduction: int, eager: bool) -> SideBlocks:
    """Plain ViT blocks of timm (LayerScale, biases and drop path as in the backbone's block)."""
    from timm.models.vision_transformer import Block, LayerScale

    wide: Any = backbone.blocks(stack)
    kind: Any = Block
    width = _width_for_heads(backbone, stack, reduction)

    def narrow(block: Any) -> Any:
        scale = block.ls1.init_values if isinstance(block.ls1, LayerScale) else None
        hidden = block.mlp.fc1.out_features // reduction
        norm_class: Any = type(block.norm1)
        side: Any = kind(
            width, backbone.heads(stack), mlp_ratio=(hidden + 0.5) / width, qkv_bias=block.attn.qkv.bias is not None,
            qk_norm=not isinstance(block.attn.q_norm, nn.Identity), proj_bias=block.attn.proj.bias is not None,
            proj_drop=block.attn.proj_drop.p, attn_drop=block.attn.attn_drop.p, init_values=scale,
            drop_path=getattr(block.drop_path1, "drop_prob", 0.0) or 0.0, act_layer=type(block.mlp.act),
            scale_attn_norm=not isinstance(block.attn.norm, nn.Identity),
            scale_mlp_norm=not isinstance(block.mlp.norm, nn.Identity),
            norm_layer=partial(norm_class, eps=block.norm1.eps),
        )  # fmt: skip
        side.attn.fused_attn = block.attn.fused_attn and not eager
        return side

    # Where the architecture averages first, `pool` applies the (frozen) norm behind the side network.
    norm = _narrow_norm(backbone.get_submodule("model.norm"), width)
    return SideBlocks({i: narrow(wide[i]) for i in kept}, norm, None, None, eager)


def _width_for_heads(backbone: Backbone, stack: str, reduction: int) -> int:
    """The side's width where it is divided among the backbone's number of heads."""
    width, heads = backbone.width(stack), backbone.heads(stack)
    _require(lambda r: width // r >= heads and width // r % heads == 0, backbone, reduction,
             f"its {heads} heads must divide {width} // r")  # fmt: skip
    return width // reduction


def _require(fits: Callable[[int], bool], backbone: Backbone, reduction: int, reason: str) -> None:
    if not fits(reduction):
        valid = sorted((r for r in range(1, 129) if fits(r)), key=lambda r: abs(r - reduction))
        raise UserError(
            f"There is no side network {reduction} times narrower than {backbone.config.get('name')}: {reason}.",
            where=f"method.reduction_factor: {reduction}",
            nearest=[str(r) for r in valid[:3]],
            remedy="choose one of these reduction factors",
        )


FAMILIES: dict[str, Callable[[Backbone, str, Sequence[int], int, bool], SideBlocks]] = {
    "t5": t5_blocks, "encoder": encoder_blocks, "decoder": decoder_blocks, "vit": vit_blocks,
    "clip": clip_blocks,
}  # fmt: skip


def side_blocks(
    backbone: Backbone, stack: str, kept: Sequence[int], reduction: int, *, eager: bool = False
) -> SideBlocks:
    """The side blocks of `stack`, randomly initialised, on the backbone's device.

    Raises:
        UserError: the reduction factor leaves no valid head width, or the block is of a kind that cannot be narrowed.
    """
    with torch.device(next(backbone.parameters()).device):
        blocks = FAMILIES[backbone.family](backbone, stack, kept, reduction, eager)
    initialize(backbone, blocks)
    return blocks


def initialize(backbone: Backbone, blocks: SideBlocks) -> None:
    """The library's own rule evaluated at the backbone's widths, as in the released code without pruning; norms 1."""
    model: Any = backbone.model
    if hasattr(model, "_init_weights"):
        blocks.apply(model._init_weights)
    else:
        from timm.models.vision_transformer import init_weights_vit_timm

        blocks.apply(init_weights_vit_timm)

"""Side blocks: the library's own blocks at a width divided by r, one class per way of calling them.

    begin(side)  masks, position bias, rotary angles of this stack, made once
    run(side, i) side block i on the side stream
    finish(side) final side norm (where the backbone has one) and dropout

`narrow.py` builds them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from transfer_run.backbones.base import Backbone, State


class SideBlocks(nn.Module):
    """The kept side blocks of one stack and what follows them.

    Args:
        blocks: layer index -> side block.
        norm: the final side norm, or None where the backbone's stack ends without one.
        source: the backbone stack's library config; its attention implementation is followed. None for timm.
        config: the side blocks' own config, `source` with narrower widths.
        eager: materialise attention as the released code did, whatever the backbone does.
    """

    input_dropout: float = 0.0
    """Probability of the dropout that the backbone applies to its embedding; the side draws its own."""
    output_dropout: float = 0.0

    def __init__(self, blocks: dict[int, nn.Module], norm: nn.Module | None, source: Any, config: Any, eager: bool):
        super().__init__()
        self.kept = sorted(blocks)
        self.blocks = nn.ModuleDict({str(index): block for index, block in blocks.items()})
        self.norm = norm
        self.source, self.config, self.eager = source, config, eager

    def follow_attention(self) -> str:
        """Take the backbone's present attention implementation over; eager in the released code's mode."""
        name: str = "eager" if self.eager else self.source._attn_implementation
        self.config._attn_implementation = name
        return name

    def begin(self, side: State, memory: State | None = None) -> State:
        """The side state with all that its blocks need in `context`; `memory` is the side encoder's last state."""
        return side

    def run(self, side: State, index: int) -> Tensor:
        """Side block `index`: (B, T, d') -> (B, T, d')."""
        block: Tensor = self.blocks[str(index)](side.hidden)
        return block

    def finish(self, side: State) -> Tensor:
        hidden = side.hidden if self.norm is None else self.norm(side.hidden)
        return F.dropout(hidden, self.output_dropout, self.training)

    def inherit(self, backbone: Backbone, stack: str, columns: Tensor) -> None:
        """Copy what the blocks of a stack share (position tables) from the backbone; `columns`: kept channels."""

    def new_cache(self) -> Any:
        return DynamicCache()


class T5Blocks(SideBlocks):
    """T5: the first kept block owns the relative-position table, the later ones reuse its bias."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.input_dropout = self.output_dropout = self.source.dropout_rate

    @property
    def position_owner(self) -> nn.Module:
        return self.blocks[str(self.kept[0])].get_submodule("layer.0.SelfAttention")

    def begin(self, side: State, memory: State | None = None) -> State:
        cache = side.context.get("cache")
        fused = self.follow_attention() == "sdpa"
        common = {"config": self.config, "inputs_embeds": side.hidden}
        bias = self._position_bias(side, 0 if cache is None else cache.get_seq_length())
        if memory is None:
            mask = create_bidirectional_mask(attention_mask=side.mask, **common)
            if fused and mask is not None:
                # A fused kernel keeps the mask it is given: one (B, H, S, S) tensor for the stack, not one a block.
                bias, mask = _merged(mask, bias), None
            return _with(side, mask=mask, bias=bias)
        own = None if cache is None else cache.self_attention_cache
        mask = create_causal_mask(attention_mask=side.mask, past_key_values=own, **common)
        cross = create_bidirectional_mask(attention_mask=memory.mask, encoder_hidden_states=memory.hidden, **common)
        cross_bias = side.hidden.new_zeros(1, 1, 1, 1)
        if fused and cross is not None:
            cross_bias, cross = _merged(cross, cross_bias), None
        return _with(side, mask=mask, bias=bias, cross_mask=cross, cross_bias=cross_bias, memory=memory.hidden)

    def _position_bias(self, side: State, past: int) -> Tensor:
        """(1, H, queries, keys); zero for every pair with an extra token (vision-and-language variant)."""
        extra: int = side.context.get("extra", 0)
        text = side.hidden.shape[1] - extra
        bias: Tensor = self.position_owner.compute_bias(  # type: ignore[operator]
            text, text + past, device=side.hidden.device, past_seen_tokens=past
        )
        return F.pad(bias, (0, extra, 0, extra)) if extra else bias

    def run(self, side: State, index: int) -> Tensor:
        context = side.context
        hidden: Tensor = self.blocks[str(index)](
            side.hidden, context["mask"], context["bias"], context.get("memory"), context.get("cross_mask"),
            context.get("cross_bias"), past_key_values=context.get("cache"),
        )[0]  # fmt: skip
        return hidden

    def inherit(self, backbone: Backbone, stack: str, columns: Tensor) -> None:
        name = "relative_attention_bias.weight"
        table = backbone.blocks(stack)[0].get_submodule("layer.0.SelfAttention").get_parameter(name)
        self.position_owner.get_parameter(name).copy_(table)

    def new_cache(self) -> EncoderDecoderCache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())


class EncoderBlocks(SideBlocks):
    """BERT, RoBERTa, BART and kin: bidirectional attention, absolute positions already in the embedding."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        bart = self.source.model_type == "bart"
        self.input_dropout = self.source.dropout if bart else self.source.hidden_dropout_prob

    def begin(self, side: State, memory: State | None = None) -> State:
        self.follow_attention()
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=side.hidden, attention_mask=side.mask)
        return _with(side, mask=mask)

    def run(self, side: State, index: int) -> Tensor:
        out = self.blocks[str(index)](side.hidden, side.context["mask"])
        hidden: Tensor = out if isinstance(out, Tensor) else out[0]
        return hidden


class DebertaBlocks(EncoderBlocks):
    """DeBERTa v2 and v3: the side stack has its own narrow table of relative positions, shared by its blocks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder

        bare = copy.deepcopy(self.config)
        bare.num_hidden_layers, bare.conv_kernel_size = 0, 0
        self.tables = DebertaV2Encoder(bare)  # no blocks: only the position table, its norm and the library's rules

    def begin(self, side: State, memory: State | None = None) -> State:
        mask = side.mask if side.mask is not None else side.hidden.new_ones(side.hidden.shape[:2])
        positions = {"relative_pos": self.tables.get_rel_pos(side.hidden),
                     "rel_embeddings": self.tables.get_rel_embedding()}  # fmt: skip
        return _with(side, mask=self.tables.get_attention_mask(mask), positions=positions)

    def run(self, side: State, index: int) -> Tensor:
        hidden: Tensor = self.blocks[str(index)](side.hidden, side.context["mask"], **side.context["positions"])[0]
        return hidden

    def inherit(self, backbone: Backbone, stack: str, columns: Tensor) -> None:
        wide = dict(_owner(backbone, "rel_embeddings").named_parameters(recurse=True))
        for name, narrow in self.tables.named_parameters():
            narrow.copy_(wide[name][..., columns])


class DecoderBlocks(SideBlocks):
    """GPT-2, Llama, Qwen and kin: causal attention; rotary angles are made for the side's own head width."""

    def __init__(self, *args: Any, rotary: nn.Module | None = None) -> None:
        super().__init__(*args)
        self.input_dropout = getattr(self.source, "embd_pdrop", 0.0)
        self.rotary = rotary

    def begin(self, side: State, memory: State | None = None) -> State:
        self.follow_attention()
        cache, length = side.context.get("cache"), side.hidden.shape[1]
        past = 0 if cache is None else cache.get_seq_length()
        mask = create_causal_mask(
            config=self.config, inputs_embeds=side.hidden, attention_mask=side.mask, past_key_values=cache
        )
        extras: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache}
        if self.rotary is not None:
            positions = side.context.get("positions")
            if positions is None:
                positions = torch.arange(past, past + length, device=side.hidden.device).unsqueeze(0)
            extras["position_embeddings"] = self.rotary(side.hidden, positions)
        return _with(side, extras=extras)

    def run(self, side: State, index: int) -> Tensor:
        out = self.blocks[str(index)](side.hidden, **side.context["extras"])
        hidden: Tensor = out if isinstance(out, Tensor) else out[0]
        return hidden


class ClipBlocks(SideBlocks):
    """CLIP's towers: patches see each other, text is causal."""

    def begin(self, side: State, memory: State | None = None) -> State:
        self.follow_attention()
        if side.stack == "image":
            return side
        mask = create_causal_mask(
            config=self.config, inputs_embeds=side.hidden, attention_mask=side.mask, past_key_values=None
        )
        return _with(side, mask=mask)

    def run(self, side: State, index: int) -> Tensor:
        words = {} if side.stack == "image" else {"is_causal": True}
        hidden: Tensor = self.blocks[str(index)](side.hidden, side.context.get("mask"), **words)
        return hidden


def _with(side: State, **context: Any) -> State:
    return replace(side, context=side.context | context)


def _merged(mask: Any, bias: Tensor) -> Tensor:
    """A boolean mask and an additive bias as one additive mask, contiguous and in the precision attention runs in,
    so that no block copies it."""
    device = bias.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else bias.dtype
    return torch.where(mask, bias.to(dtype), torch.finfo(dtype).min).contiguous()


def _owner(backbone: nn.Module, name: str) -> nn.Module:
    """The first module of the backbone that has the attribute `name`."""
    return next(module for module in backbone.modules() if hasattr(module, name))

"""Vision transformers of timm (ViT, AugReg, DeiT, MAE, DINO and other `VisionTransformer`s), run block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from transfer_run.backbones.attention import attend, split_heads
from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.images import refuse_channels
from transfer_run.backbones.weights.checkpoints import new_timm, read_timm
from transfer_run.errors import UserError

_PARTS = {"attention": "attn", "norm1": "norm1", "qkv": "attn.qkv", "out": "attn.proj", "norm2": "norm2",
          "mlp": "mlp", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}  # fmt: skip


class ViT(Backbone):
    """Patches and prefix tokens (CLS, registers) through pre-norm blocks; there is no mask.

        image -> patches, [CLS] + position -> blocks -> norm -> CLS, or the mean of the patches

    Tokens of a method stand before CLS; they can be put in before any block and taken out after it.
    """

    family = "vit"
    stacks = ("image",)
    model: VisionTransformer

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        if not isinstance(model, VisionTransformer) or not all(type(block) is Block for block in model.blocks):
            raise UserError(
                f"timm's {type(model).__name__} is not a plain pre-norm VisionTransformer.",
                where="backbone.architecture.model",
                remedy="choose a vit_* or deit_* model of timm",
            )

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> ViT:
        return cls(new_timm(config["architecture"]), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> ViT:
        backbone = cls.from_architecture(config)
        backbone.source_head = read_timm(backbone.model, folder)
        return backbone

    # ---- architecture
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return self.model.blocks  # type: ignore[return-value]

    def width(self, stack: str, index: int | None = None) -> int:
        return self.model.embed_dim

    def heads(self, stack: str) -> int:
        return self.model.blocks[0].attn.num_heads  # type: ignore[union-attr,return-value]

    def parts(self, stack: str, index: int) -> dict[str, str]:
        return {name: f"model.blocks.{index}.{path}" for name, path in _PARTS.items()}

    def final_norm(self, stack: str) -> nn.Module:
        """`norm`, before pooling; where the architecture averages first, `fc_norm`, which `pool` applies."""
        return self.model.fc_norm if isinstance(self.model.norm, nn.Identity) else self.model.norm

    def set_attention(self, implementation: str) -> None:
        for block in self.model.blocks:
            block.attn.fused_attn = implementation != "eager"  # type: ignore[union-attr]

    def attends_eagerly(self, stack: str) -> bool:
        return not self.model.blocks[0].attn.fused_attn  # type: ignore[union-attr]

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        images, embedding = batch["pixel_values"], self.model.patch_embed
        if not self.model.dynamic_img_size and tuple(images.shape[-2:]) != tuple(embedding.img_size or ()):
            raise UserError(
                f"Images of {images.shape[-2]} x {images.shape[-1]} pixels reached a model for {embedding.img_size}.",
                where="backbone.image.size, backbone.architecture.img_size",
                remedy="set both to the same size",
            )
        refuse_channels(images, embedding.proj.in_channels)
        patches = embedding(images)
        grid = patches.shape[1:3] if patches.ndim == 4 else embedding.grid_size
        hidden = self.model.norm_pre(self.model.patch_drop(self.model._pos_embed(patches)))
        return State(hidden, "image", context={"grid": (int(grid[0]), int(grid[1]))})

    def _step(self, state: State) -> State:
        return replace(state, hidden=self.model.blocks[state.index](state.hidden))

    def finish(self, state: State) -> Tensor:
        return self.model.norm(state.hidden)

    def prepend(self, state: State, tokens: Tensor) -> State:
        hidden = torch.cat([tokens.to(state.hidden.dtype), state.hidden], dim=1)
        return replace(state, hidden=hidden, prefix=state.prefix + tokens.shape[1])

    def drop_prefix(self, state: State, count: int) -> State:
        return replace(state, hidden=state.hidden[:, count:], prefix=state.prefix - count)

    def grid(self, state: State) -> tuple[int, int]:
        return state.context["grid"]

    def special_tokens(self, state: State) -> int:
        return state.prefix + self.model.num_prefix_tokens

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        block: Any = self.model.blocks[state.index]
        attention = block.attn
        seen, asked = block.norm1(state.hidden), block.norm1(queries)
        q, k, v = (
            split_heads(self.project("image", state.index, name, x), attention.head_dim)
            for name, x in (("q", asked), ("k", seen), ("v", seen))
        )
        dropout = attention.attn_drop.p if attention.training else 0.0
        q, k = attention.q_norm(q), attention.k_norm(k)
        eager = self.attends_eagerly("image")
        read = attention.norm(attend(q, k, v, scale=attention.scale, dropout=dropout, eager=eager))
        read = read if attention.gate is None else read * attention.gate(asked).sigmoid()
        queries = queries + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(read))))
        return queries + block.drop_path2(block.ls2(block.mlp(block.norm2(queries))))

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        """timm's own pooling of the architecture, before its head: `global_pool` (token or avg), or the mean of the two
        tokens of a distilled DeiT."""
        return self.model.forward_head(last[:, state.prefix :], pre_logits=True)

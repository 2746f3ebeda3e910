"""CLIP of transformers: an image tower and a text tower, one space for both (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel
from transformers.masking_utils import create_causal_mask

from transfer_run.backbones.attention import attend, split_heads
from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.weights.checkpoints import new_transformer, read_transformer
from transfer_run.errors import UserError, nearest_names

TOWERS = {"image": ("image",), "text": ("text",), "both": ("image", "text")}

_MODULES = {"image": "vision_model", "text": "text_model"}
_PARTS = {"attention": "self_attn", "norm1": "layer_norm1", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
          "v": "self_attn.v_proj", "out": "self_attn.out_proj", "norm2": "layer_norm2", "mlp": "mlp",
          "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}  # fmt: skip


class CLIP(Backbone):
    """Two stacks, `image` and `text`, each with its projection into the common space.

        image -> patches, [CLS] + position, norm -> blocks -> norm -> CLS ──────── projection ─┐ cosine
        text  -> tokens + position ─────────────> causal blocks -> norm -> end ─── projection ─┘ * exp(scale)

    `config['tower']` says what is kept: `image` (default) or `text`, that tower alone as the backbone of a classifier,
    which reads the features before the projection; or `both`, with the projections and the scale.
    """

    family = "clip"
    model: CLIPModel

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        tower = config.get("tower", "image")
        if tower not in TOWERS:
            raise UserError(
                f"CLIP has no tower {tower!r}.",
                where="backbone.tower",
                nearest=nearest_names(str(tower), TOWERS) or TOWERS,
            )
        self.stacks = TOWERS[tower]
        for name in _unused(tower):
            if hasattr(model, name):
                delattr(model, name)

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> CLIP:
        return cls(new_transformer(CLIPModel, config.get("architecture")), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> CLIP:
        unused = _unused(config.get("tower", "image"))
        return cls(read_transformer(CLIPModel, folder, config.get("architecture"), spare=unused), config)

    # ---- architecture
    def _tower(self, stack: str) -> Any:
        if stack not in self.stacks:
            raise UserError(
                f"This CLIP keeps its {self.stacks[0]} tower alone.",
                where="backbone.tower",
                remedy="backbone.tower=both",
            )
        return self.model.get_submodule(_MODULES[stack])

    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return self._tower(stack).encoder.layers

    def width(self, stack: str, index: int | None = None) -> int:
        return self._tower(stack).config.hidden_size

    @property
    def feature_width(self) -> int:
        return self.width(self.stacks[0])

    def heads(self, stack: str) -> int:
        return self._tower(stack).config.num_attention_heads

    def parts(self, stack: str, index: int) -> dict[str, str]:
        return {name: f"model.{_MODULES[stack]}.encoder.layers.{index}.{path}" for name, path in _PARTS.items()}

    def final_norm(self, stack: str) -> nn.Module:
        tower = self._tower(stack)
        return tower.post_layernorm if stack == "image" else tower.final_layer_norm

    def finish_modules(self, stack: str) -> list[nn.Module]:
        return [self.final_norm(stack)] + ([self.projection(stack)] if len(self.stacks) > 1 else [])

    def projection(self, stack: str) -> nn.Linear:
        """As in the base; kept with both towers only."""
        return self.model.visual_projection if stack == "image" else self.model.text_projection

    def attends_eagerly(self, stack: str) -> bool:
        return self._tower(stack).config._attn_implementation == "eager"

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        stack = stack or self.stacks[0]
        tower = self._tower(stack)
        if stack == "image":
            images, size = batch["pixel_values"], tower.config.image_size
            if tuple(images.shape[-2:]) != (size, size):
                raise UserError(
                    f"Images of {images.shape[-2]} x {images.shape[-1]} pixels reached a model for {size} x {size}.",
                    where="backbone.image.size",
                    remedy=f"backbone.image.size={size}",
                )
            return State(tower.pre_layrnorm(tower.embeddings(images)), "image")
        ids, room = batch["input_ids"], tower.config.max_position_embeddings
        if ids.shape[1] > room:
            raise UserError(
                f"A text of {ids.shape[1]} tokens is longer than the {room} that {self.config.get('name')} can place.",
                where="dataset.max_source_length",
                remedy=f"dataset.max_source_length={room} or less",
            )
        state = State(tower.embeddings(input_ids=ids), "text", mask=batch.get("attention_mask"))
        return self._with_mask(replace(state, context={"end": self._end_of(ids)}))

    def _end_of(self, ids: Tensor) -> Tensor:
        """(B,): where the end token stands first; in configs of before 2023 (end = 2) it is the largest id."""
        end = self._tower("text").config.eos_token_id
        return ids.argmax(-1) if end == 2 else (ids == end).int().argmax(-1)

    def _with_mask(self, state: State) -> State:
        if state.stack == "image":
            return state
        config = self._tower("text").config
        mask = create_causal_mask(
            config=config, inputs_embeds=state.hidden, attention_mask=state.mask, past_key_values=None
        )
        return replace(state, context=state.context | {"mask": mask})

    def _step(self, state: State) -> State:
        block = self.blocks(state.stack)[state.index]
        words = {} if state.stack == "image" else {"is_causal": True}
        return replace(state, hidden=block(state.hidden, state.context.get("mask"), **words))

    def finish(self, state: State) -> Tensor:
        """The last norm, on all tokens (the library norms the image's CLS token alone)."""
        return self.final_norm(state.stack)(state.hidden)

    def prepend(self, state: State, tokens: Tensor) -> State:
        mask = state.mask
        if mask is not None:
            mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        hidden = torch.cat([tokens.to(state.hidden.dtype), state.hidden], dim=1)
        return self._with_mask(replace(state, hidden=hidden, mask=mask, prefix=state.prefix + tokens.shape[1]))

    def drop_prefix(self, state: State, count: int) -> State:
        mask = None if state.mask is None else state.mask[:, count:]
        return self._with_mask(replace(state, hidden=state.hidden[:, count:], mask=mask, prefix=state.prefix - count))

    def grid(self, state: State) -> tuple[int, int] | None:
        if state.stack == "text":
            return None
        config = self._tower("image").config
        return (config.image_size // config.patch_size,) * 2

    def special_tokens(self, state: State) -> int:
        return state.prefix + 1

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        """As in the base; in the text tower queries see all real tokens, as a token behind the last one would."""
        block: Any = self.blocks(state.stack)[state.index]
        attention = block.self_attn
        seen = block.layer_norm1(state.hidden)
        q = split_heads(attention.q_proj(block.layer_norm1(queries)), attention.head_dim)
        k, v = (split_heads(project(seen), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
        dropout = attention.dropout if attention.training else 0.0
        eager = self.attends_eagerly(state.stack)
        queries = queries + attention.out_proj(attend(q, k, v, state.mask, attention.scale, dropout, eager=eager))
        return queries + block.mlp(block.layer_norm2(queries))

    # ---- heads
    def idle_parameters(self, stacks: Sequence[str], *, speaks: bool) -> list[nn.Parameter]:
        """One tower as a classifier's backbone leaves the other one, both projections and the scale alone; two that
        answer in one space leave the scale as it is."""
        if len(stacks) > 1:
            return [self.model.logit_scale]
        if len(self.stacks) > 1:
            return []
        used = {id(p) for p in self._tower(self.stacks[0]).parameters()}
        return [p for p in self.model.parameters() if id(p) not in used]

    def pool(self, last: Tensor, state: State) -> Tensor:
        """The image's CLS token, the text's end token; before the projection."""
        if state.stack == "image":
            return last[:, state.prefix]
        rows = torch.arange(last.shape[0], device=last.device)
        return last[rows, state.context["end"] + state.prefix]

    def project_features(self, features: Tensor, stack: str) -> Tensor:
        """Pooled features (B, width) into the common space, of length 1: (B, projection width)."""
        return F.normalize(self.projection(stack)(features), dim=-1)

    @property
    def similarity_scale(self) -> Tensor:
        scale: Tensor = self.model.logit_scale.exp()
        return scale

    def encode(self, batch: Batch, stack: str) -> Tensor:
        """Images or texts in the common space, of length 1: (B, projection width)."""
        state = self.run(self.embed(batch, stack))
        return self.project_features(self.pool(self.finish(state), state), stack)


def _unused(tower: str) -> tuple[str, ...]:
    """What a classifier on one tower does not need: the other tower, the projections, the scale."""
    shared = ("visual_projection", "text_projection", "logit_scale")
    return () if tower == "both" else (*shared, "text_model" if tower == "image" else "vision_model")

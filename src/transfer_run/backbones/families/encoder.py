"""Encoder-only text models of transformers (BERT, MiniLM, RoBERTa, XLM-R, DeBERTa-v2 and v3), run block by block.

BART's encoder is of the same family and has its own class (`bart.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from transfer_run.backbones.attention import attend, split_heads
from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.weights.checkpoints import new_transformer, read_transformer
from transfer_run.backbones.weights.files import stored_config
from transfer_run.errors import UserError, nearest_names

MODELS = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "deberta-v2": "DebertaV2Model",
}
NO_POOLER = ("deberta-v2",)
"""Kinds whose model has none."""

_PARTS = {"attention": "attention.self", "norm1": "attention.output.LayerNorm", "q": "attention.self.query",
          "k": "attention.self.key", "v": "attention.self.value", "out": "attention.output.dense",
          "norm2": "output.LayerNorm", "mlp_in": "intermediate.dense", "mlp_out": "output.dense"}  # fmt: skip
_DEBERTA = {name: f"attention.self.{word}_proj" for name, word in (("q", "query"), ("k", "key"), ("v", "value"))}


class Encoder(Backbone):
    """Post-norm transformer encoders: h -> norm1(h + out(attention(h))) -> norm2(u + mlp(u)).

    The two norms of a block follow its sums, so there is no final norm, and no module of its own for the feed-forward
    part: `mlp` is absent from the parts, `mlp_in` and `mlp_out` are its two projections.

    `config['pooling']` says what `pool` returns: `pooler`, the model's own (BERT: tanh of a projection of [CLS]; it
    was pretrained); `cls`, the first token; `mean`, over the real tokens.
    """

    family = "encoder"
    stacks = ("encoder",)
    pre_norm = False
    model: Any

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self.pooling = config.get("pooling", "cls")
        self.relative = self.model.config.model_type == "deberta-v2"

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> Encoder:
        kind, extras = _kind(config)
        model_class = getattr(transformers, MODELS[kind])
        return cls(new_transformer(model_class, config.get("architecture"), **extras), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> Encoder:
        kind, extras = _kind(config, folder)
        model_class = getattr(transformers, MODELS[kind])
        return cls(read_transformer(model_class, folder, config.get("architecture"), **extras), config)

    # ---- architecture
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return self.model.encoder.layer

    def width(self, stack: str, index: int | None = None) -> int:
        return self.model.config.hidden_size

    def heads(self, stack: str) -> int:
        return self.model.config.num_attention_heads

    def parts(self, stack: str, index: int) -> dict[str, str]:
        names = _PARTS | _DEBERTA if self.relative else _PARTS
        return {name: f"model.encoder.layer.{index}.{path}" for name, path in names.items()}

    def set_attention(self, implementation: str) -> None:
        if not self.relative:  # DeBERTa's disentangled attention has one implementation only
            super().set_attention(implementation)

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        self._refuse_long(ids)
        words: dict[str, Any] = {"input_ids": ids}
        if self.model.config.type_vocab_size > 1:
            words["token_type_ids"] = batch.get("token_type_ids")
        if self.relative:
            mask = torch.ones_like(ids) if mask is None else mask
            words["mask"] = mask
        return self._with_masks(State(self.model.embeddings(**words), "encoder", mask=mask))

    def _refuse_long(self, ids: Tensor) -> None:
        """Absolute positions end somewhere; RoBERTa's begin after the padding id."""
        config = self.model.config
        room = config.max_position_embeddings - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)
        if ids.shape[1] > room and not self.relative:
            raise UserError(
                f"A text of {ids.shape[1]} tokens is longer than the {room} that {self.config.get('name')} can place.",
                where="dataset.max_source_length",
                remedy=f"dataset.max_source_length={room} or less",
            )

    def _with_masks(self, state: State) -> State:
        if not self.relative:
            mask = create_bidirectional_mask(
                config=self.model.config, inputs_embeds=state.hidden, attention_mask=state.mask
            )
            return replace(state, context=state.context | {"mask": mask})
        encoder = self.model.encoder
        return replace(state, context={
            "mask": encoder.get_attention_mask(state.mask),
            "relative_pos": encoder.get_rel_pos(state.hidden),
            "rel_embeddings": encoder.get_rel_embedding(),
        })  # fmt: skip

    def _step(self, state: State) -> State:
        block, context = self.blocks(state.stack)[state.index], state.context
        if not self.relative:
            return replace(state, hidden=block(state.hidden, context["mask"]))
        hidden, _ = block(
            state.hidden,
            context["mask"],
            relative_pos=context["relative_pos"],
            rel_embeddings=context["rel_embeddings"],
        )
        if state.index == 0 and self.model.encoder.conv is not None:
            hidden = self.model.encoder.conv(state.hidden, hidden, state.mask)
        return replace(state, hidden=hidden)

    def finish(self, state: State) -> Tensor:
        return state.hidden

    def prepend(self, state: State, tokens: Tensor) -> State:
        """As in the base. DeBERTa's relative positions count the new tokens as standing before the text."""
        mask = state.mask
        if mask is not None:
            mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        hidden = torch.cat([tokens.to(state.hidden.dtype), state.hidden], dim=1)
        return self._with_masks(replace(state, hidden=hidden, mask=mask, prefix=state.prefix + tokens.shape[1]))

    def drop_prefix(self, state: State, count: int) -> State:
        mask = None if state.mask is None else state.mask[:, count:]
        shorter = replace(state, hidden=state.hidden[:, count:], mask=mask, prefix=state.prefix - count)
        return self._with_masks(shorter)

    def check_queries(self, stack: str) -> None:
        if self.relative:
            raise UserError(
                "DeBERTa takes no separate queries: each of its attention scores needs the query's place in the text, "
                "and the queries have none.",
                where="backbone",
                remedy="choose a BERT or RoBERTa backbone",
            )

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        self.check_queries(state.stack)
        block: Any = self.blocks(state.stack)[state.index]
        attention = block.attention.self
        width, dropout = attention.attention_head_size, attention.dropout.p if attention.training else 0.0
        q = split_heads(attention.query(queries), width)
        k, v = split_heads(attention.key(state.hidden), width), split_heads(attention.value(state.hidden), width)
        read = attend(q, k, v, state.mask, dropout=dropout, eager=self.attends_eagerly(state.stack))
        return block.feed_forward_chunk(block.attention.output(read, queries))

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        last = last[:, state.prefix :]
        if self.pooling == "pooler":
            return self.model.pooler(last)
        if self.pooling == "cls":
            return last[:, 0]
        if state.mask is None:
            return last.mean(1)
        weights = state.mask[:, state.prefix :].to(last.dtype).unsqueeze(-1)
        return (last * weights).sum(1) / weights.sum(1).clamp(min=1)


def _kind(config: dict[str, Any], folder: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The `model_type`, and whether the library's class shall have a pooler."""
    architecture, pooling = config.get("architecture") or {}, config.get("pooling", "cls")
    kind = architecture.get("model_type")
    if kind is None and folder is not None:
        kind = stored_config(folder).get("model_type")
    if kind not in MODELS:
        raise UserError(
            f"No encoder of type {kind!r} is known.",
            where="backbone.architecture.model_type",
            nearest=nearest_names(str(kind), MODELS) or sorted(MODELS),
        )
    check_pooling(kind, pooling, ("cls", "mean") if kind in NO_POOLER else ("pooler", "cls", "mean"))
    return kind, {} if kind in NO_POOLER else {"add_pooling_layer": pooling == "pooler"}


def check_pooling(kind: str, pooling: str, possible: Sequence[str]) -> None:
    """UserError where the kind's text cannot be pooled so."""
    if pooling not in possible:
        raise UserError(
            f"pooling={pooling} is not defined for {kind}.",
            where="backbone.pooling",
            nearest=nearest_names(str(pooling), possible) or list(possible),
        )

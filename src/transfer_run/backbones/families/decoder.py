"""Decoder-only language models of transformers (GPT-2; Llama, Mistral, Qwen2 and Qwen3), run block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from transfer_run.backbones.attention import attend, split_heads
from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.weights.checkpoints import new_transformer, read_transformer
from transfer_run.backbones.weights.files import stored_config
from transfer_run.backbones.weights.headers import has_tensor
from transfer_run.backbones.weights.settings import TIED
from transfer_run.errors import UserError, nearest_names

MODELS = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_GPT2 = {"attention": "attn", "norm1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj",
         "norm2": "ln_2", "mlp": "mlp", "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"}  # fmt: skip
_LLAMA = {"attention": "self_attn", "norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
          "v": "self_attn.v_proj", "out": "self_attn.o_proj", "norm2": "post_attention_layernorm", "mlp": "mlp",
          "mlp_in": "mlp.up_proj", "mlp_gate": "mlp.gate_proj", "mlp_out": "mlp.down_proj"}  # fmt: skip


class Decoder(Backbone):
    """Causal pre-norm transformers: every token sees itself, those before it, and tokens put in front.

    GPT-2 adds learned positions to the embedding and fuses q, k, v in one `Conv1D` (a linear with a transposed
    weight). The others (`rotary`) turn q and k by their position in every block, and may share keys among heads.

    A batch may carry `position_ids` (B, T); without them tokens count from 0, padding included, as in the library:
    pad on the right. Its `attention_mask` covers the tokens in the cache and the new ones; columns it lacks stand for
    tokens that were put in front.
    """

    family = "decoder"
    stacks = ("decoder",)
    model: Any

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self.rotary = self.model.config.model_type != "gpt2"

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> Decoder:
        return cls(new_transformer(_model_class(config), config.get("architecture")), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> Decoder:
        """A body without a language head fits a backbone that has none of its own (`tie_word_embeddings`)."""
        architecture = config.get("architecture") or {}
        bare = architecture.get(TIED) and not has_tensor(folder, "lm_head.weight")
        also = () if bare else (TIED,)
        model_class = _model_class(config, folder)
        return cls(read_transformer(model_class, folder, config.get("architecture"), also=also), config)

    # ---- architecture
    @property
    def _body(self) -> Any:
        return self.model.model if self.rotary else self.model.transformer

    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return self._body.layers if self.rotary else self._body.h

    def width(self, stack: str, index: int | None = None) -> int:
        return self.model.config.hidden_size

    def heads(self, stack: str) -> int:
        return self.model.config.num_attention_heads

    def parts(self, stack: str, index: int) -> dict[str, str]:
        prefix, names = ("model.model.layers", _LLAMA) if self.rotary else ("model.transformer.h", _GPT2)
        return {name: f"{prefix}.{index}.{path}" for name, path in names.items()}

    def final_norm(self, stack: str) -> nn.Module:
        return self._body.norm if self.rotary else self._body.ln_f

    def finish_modules(self, stack: str) -> list[nn.Module]:
        own_head = self.model.lm_head.weight is not self.model.get_input_embeddings().weight
        return [self.final_norm(stack), self.model.lm_head] if own_head else [self.final_norm(stack)]

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        ids, cache, mask = batch["input_ids"], batch.get("cache"), batch.get("attention_mask")
        seen = 0 if cache is None else cache.get_seq_length()  # type: ignore[attr-defined]
        in_front = 0 if mask is None else seen + ids.shape[1] - mask.shape[1]
        if in_front and mask is not None:
            mask = torch.cat([mask.new_ones(mask.shape[0], in_front), mask], dim=1)
        positions = batch.get("position_ids")
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) + seen - in_front
        hidden = self._body.embed_tokens(ids) if self.rotary else self._placed(ids, positions)
        context = {"cache": cache, "positions": positions}
        return self._with_masks(State(hidden, "decoder", mask=mask, context=context))

    def _placed(self, ids: Tensor, positions: Tensor) -> Tensor:
        room = self.model.config.max_position_embeddings
        if ids.shape[1] > room:
            raise UserError(
                f"A text of {ids.shape[1]} tokens is longer than the {room} that {self.config.get('name')} can place.",
                where="dataset.max_source_length",
                remedy=f"dataset.max_source_length={room} or less",
            )
        return self._body.drop(self._body.wte(ids) + self._body.wpe(positions))

    def _with_masks(self, state: State) -> State:
        """The library's causal masks and rotary angles for the state's present tokens."""
        context = state.context
        words = {
            "config": self.model.config,
            "inputs_embeds": state.hidden,
            "attention_mask": state.mask,
            "past_key_values": context["cache"],
        }
        made = {"mask": create_causal_mask(**words)}
        if self._windowed:
            made["sliding_mask"] = create_sliding_window_causal_mask(**words)
        if self.rotary:
            made["angles"] = self._body.rotary_emb(state.hidden, position_ids=context["positions"])
        return replace(state, context=context | made)

    @property
    def _windowed(self) -> bool:
        return any(self._slides(index) for index in range(self.depth("decoder")))

    def _slides(self, index: int) -> bool:
        """Does block `index` see a window of the last tokens only?"""
        config = self.model.config
        types = getattr(config, "layer_types", None)
        return types[index] == "sliding_attention" if types else getattr(config, "sliding_window", None) is not None

    def _step(self, state: State) -> State:
        block, context = self.blocks(state.stack)[state.index], state.context
        words = {"past_key_values": context["cache"], "use_cache": context["cache"] is not None,
                 "position_ids": context["positions"], "attention_mask": context["mask"]}  # fmt: skip
        if self.rotary:
            words["position_embeddings"] = context["angles"]
            if self._slides(state.index):
                words["attention_mask"] = context["sliding_mask"]
        return replace(state, hidden=block(state.hidden, **words))

    def finish(self, state: State) -> Tensor:
        return self.final_norm(state.stack)(state.hidden)

    def prepend(self, state: State, tokens: Tensor) -> State:
        """As in the base; where positions are rotary the new tokens take -R to -1, the text keeps its own."""
        if state.context["cache"] is not None and (state.index or state.context["cache"].get_seq_length()):
            raise ValueError("with a key/value cache tokens are put in before block 0, at the first step only")
        count = tokens.shape[1]
        if self._windowed and count + state.hidden.shape[1] > self.model.config.sliding_window:
            raise UserError(
                "Tokens in front would be out of sight: the decoder sees a window of "
                f"{self.model.config.sliding_window} tokens, the text has {state.hidden.shape[1]}.",
                where="backbone, dataset.max_source_length",
                remedy="shorten the text, or choose a decoder without a sliding window",
            )
        hidden = torch.cat([tokens.to(state.hidden.dtype), state.hidden], dim=1)
        mask, positions = state.mask, state.context["positions"]
        if mask is not None:
            mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        before = torch.arange(-count - state.prefix, -state.prefix, device=positions.device)
        positions = torch.cat([before.expand(positions.shape[0], -1), positions], dim=1)
        longer = replace(state, hidden=hidden, mask=mask, prefix=state.prefix + count)
        return self._with_masks(replace(longer, context=state.context | {"positions": positions}))

    def drop_prefix(self, state: State, count: int) -> State:
        mask = None if state.mask is None else state.mask[:, count:]
        shorter = replace(state, hidden=state.hidden[:, count:], mask=mask, prefix=state.prefix - count)
        return self._with_masks(
            replace(shorter, context=state.context | {"positions": state.context["positions"][:, count:]})
        )

    def check_queries(self, stack: str) -> None:
        if self._windowed:
            raise UserError(
                "A block that sees only a window of the last tokens takes no separate queries: they have no place.",
                where="backbone",
                remedy="choose a decoder without a sliding window",
            )

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        """As in the base; queries stand behind the last real token, so they see all of them."""
        if state.context["cache"] is not None:
            raise ValueError("separate queries need the whole text at once, not a key/value cache")
        self.check_queries(state.stack)
        block: Any = self.blocks(state.stack)[state.index]
        norm1, norm2 = (self.part(state.stack, state.index, name) for name in ("norm1", "norm2"))
        attention: Any = self.part(state.stack, state.index, "attention")
        seen, asked = norm1(state.hidden), norm1(queries)
        q, k, v = (
            split_heads(self.project(state.stack, state.index, name, x), attention.head_dim)
            for name, x in (("q", asked), ("k", seen), ("v", seen))
        )
        if self.rotary:
            q, k = self._turned(state, attention, q, k)
            dropout = attention.attention_dropout
        else:
            dropout = attention.attn_dropout.p
        dropout, eager = dropout if attention.training else 0.0, self.attends_eagerly(state.stack)
        read = attend(q, k, v, state.mask, attention.scaling, dropout, eager=eager)
        out = self.part(state.stack, state.index, "out")(read)
        queries = queries + (out if self.rotary else attention.resid_dropout(out))
        return queries + block.mlp(norm2(queries))

    def _turned(self, state: State, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary positions: keys their own, all queries the one behind the last real token."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        positions = state.context["positions"]
        positions = positions if state.mask is None else torch.where(state.mask.bool(), positions, -1)
        behind = positions.amax(1, keepdim=True) + 1
        q, _ = apply_rotary_pos_emb(q, q, *self._body.rotary_emb(state.hidden, position_ids=behind))
        k, _ = apply_rotary_pos_emb(k, k, *state.context["angles"])
        return q, k

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        """The last real token, the only one that has seen the whole text."""
        if state.mask is None:
            return last[:, -1]
        places = torch.arange(last.shape[1], device=last.device)
        index = (places * state.mask).amax(1)
        return last[torch.arange(last.shape[0], device=last.device), index]

    def idle_parameters(self, stacks: Sequence[str], *, speaks: bool) -> list[nn.Parameter]:
        """The language head, where it has weights of its own and nobody asks for words."""
        head, table = self.model.lm_head.weight, self._body.get_input_embeddings().weight
        return [head] if not speaks and head is not table else []

    def _words(self, last: Tensor) -> Tensor:
        return self.model.lm_head(last)

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)


def _model_class(config: dict[str, Any], folder: Path | None = None) -> Any:
    kind = (config.get("architecture") or {}).get("model_type")
    if kind is None and folder is not None:
        kind = stored_config(folder).get("model_type")
    if kind not in MODELS:
        raise UserError(
            f"No decoder of type {kind!r} is known.",
            where="backbone.architecture.model_type",
            nearest=nearest_names(str(kind), MODELS) or sorted(MODELS),
        )
    return getattr(transformers, MODELS[kind])

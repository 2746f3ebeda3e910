"""T5, mT5-like, Flan-T5, T5 v1.1, ByT5: encoder and decoder of transformers, run block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from transfer_run.backbones.attention import attend, split_heads
from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.weights.checkpoints import new_transformer, read_transformer
from transfer_run.backbones.weights.files import stored_config
from transfer_run.backbones.weights.settings import TIED, refuse_others

_SELF = {"attention": "layer.0.SelfAttention", "norm1": "layer.0.layer_norm", "q": "layer.0.SelfAttention.q",
         "k": "layer.0.SelfAttention.k", "v": "layer.0.SelfAttention.v", "out": "layer.0.SelfAttention.o"}  # fmt: skip
_CROSS = {"cross_attention": "layer.1.EncDecAttention", "cross_norm": "layer.1.layer_norm",
          "cross_q": "layer.1.EncDecAttention.q", "cross_k": "layer.1.EncDecAttention.k",
          "cross_v": "layer.1.EncDecAttention.v", "cross_out": "layer.1.EncDecAttention.o"}  # fmt: skip


class T5(Backbone):
    """Encoder-decoder with relative position bias, pre-norm, RMS norms without bias.

    The position bias is computed by block 0 of a stack and handed on in the context, as in the library. Tokens put
    in front count as standing before the text: distances between text tokens stay what they were.
    """

    family = "t5"
    stacks = ("encoder", "decoder")
    model: T5ForConditionalGeneration

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> T5:
        model = new_transformer(T5ForConditionalGeneration, config.get("architecture"))
        tied = config["architecture"].get("tie_word_embeddings", True)
        if not tied:  # the library ties the head of every new T5; v1.1 and Flan have one of their own, unscaled
            head = torch.empty_like(model.shared.weight).normal_(std=model.config.initializer_factor)
            model.lm_head.weight = nn.Parameter(head)
        return cls(model, config)._with_head(tied)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> T5:
        architecture = config.get("architecture")
        words = architecture and {key: value for key, value in architecture.items() if key != "tie_word_embeddings"}
        stored = stored_config(folder)
        tied = stored.get("scale_decoder_outputs", stored.get(TIED, True))
        if architecture is not None:
            refuse_others({TIED: tied}, {TIED: architecture.get(TIED, True)}, folder)
        model = read_transformer(T5ForConditionalGeneration, folder, words)
        return cls(model, config)._with_head(tied)

    def _with_head(self, tied: bool) -> T5:
        """A tied head takes its input times d^-1/2; the library forgets on saving whether it was tied."""
        self.model.config.scale_decoder_outputs = tied
        self.model.config.tie_word_embeddings = tied
        return self

    # ---- architecture
    def _stack(self, stack: str) -> Any:
        return self.model.get_submodule(stack)

    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return self._stack(stack).block

    def width(self, stack: str, index: int | None = None) -> int:
        return self.model.config.d_model

    def heads(self, stack: str) -> int:
        return self.model.config.num_heads

    def parts(self, stack: str, index: int) -> dict[str, str]:
        feed_forward = "layer.1" if stack == "encoder" else "layer.2"
        gated = self.model.config.is_gated_act
        names = dict(_SELF) if stack == "encoder" else {**_SELF, **_CROSS}
        names |= {"norm2": f"{feed_forward}.layer_norm", "mlp": f"{feed_forward}.DenseReluDense",
                  "mlp_in": f"{feed_forward}.DenseReluDense.{'wi_1' if gated else 'wi'}",
                  "mlp_out": f"{feed_forward}.DenseReluDense.wo"}  # fmt: skip
        if gated:
            names["mlp_gate"] = f"{feed_forward}.DenseReluDense.wi_0"
        return {name: f"model.{stack}.block.{index}.{path}" for name, path in names.items()}

    def final_norm(self, stack: str) -> nn.Module:
        return self._stack(stack).final_layer_norm

    def finish_modules(self, stack: str) -> list[nn.Module]:
        own_head = stack == "decoder" and self.model.lm_head.weight is not self.model.shared.weight
        return [self.final_norm(stack), self.model.lm_head] if own_head else [self.final_norm(stack)]

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        stack = stack or "encoder"
        module = self._stack(stack)
        ids = batch["input_ids"] if stack == "encoder" else batch["decoder_input_ids"]
        mask = batch.get("attention_mask") if stack == "encoder" else batch.get("decoder_attention_mask")
        embedded = self.model.shared(ids)
        context: dict[str, Any] = {"position_bias": None, "cross_position_bias": None, "cache": batch.get("cache")}
        if stack == "encoder":
            context["cache"] = None
        state = State(module.dropout(embedded), stack, mask=mask, context=context)
        if stack == "decoder":
            if memory is None:
                raise ValueError("a decoder reads the encoder's memory: give `finished_state` of the encoder")
            state.context["memory"] = memory
        return self._with_masks(state)

    def _with_masks(self, state: State) -> State:
        """Build the library's attention masks and the position bias for the state's present length."""
        config, hidden, context = self._stack(state.stack).config, state.hidden, state.context
        if state.stack == "encoder":
            masks = {"mask": create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=state.mask)}
        else:
            cache, memory = context["cache"], context["memory"]
            self_cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
            masks = {
                "mask": create_causal_mask(
                    config=config, inputs_embeds=hidden, attention_mask=state.mask, past_key_values=self_cache
                ),
                "cross_mask": create_bidirectional_mask(
                    config=config, inputs_embeds=hidden, attention_mask=memory.mask, encoder_hidden_states=memory.hidden
                ),
            }
        bias = None
        if state.index:  # past block 0, which would make it
            first: Any = self.blocks(state.stack)[0]
            bias = first.layer[0].SelfAttention.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
        return replace(state, context=context | masks | {"position_bias": bias, "cross_position_bias": None})

    def _step(self, state: State) -> State:
        context = state.context
        memory: State | None = context.get("memory")
        hidden, bias, cross_bias = self.blocks(state.stack)[state.index](
            state.hidden,
            context["mask"],
            context["position_bias"],
            None if memory is None else memory.hidden,
            context.get("cross_mask"),
            context["cross_position_bias"],
            past_key_values=context["cache"],
        )
        return replace(
            state, hidden=hidden, context=context | {"position_bias": bias, "cross_position_bias": cross_bias}
        )

    def with_memory(self, state: State, memory: State) -> State:
        same_length = memory.hidden.shape[1] == state.context["memory"].hidden.shape[1]
        changed = replace(state, context=state.context | {"memory": memory})
        return changed if same_length else self._with_masks(changed)

    def finish(self, state: State) -> Tensor:
        module = self._stack(state.stack)
        return module.dropout(module.final_layer_norm(state.hidden))

    def prepend(self, state: State, tokens: Tensor) -> State:
        if state.index and state.context["cache"] is not None:
            raise ValueError("with a key/value cache tokens are put in before block 0")
        hidden = torch.cat([tokens.to(state.hidden.dtype), state.hidden], dim=1)
        mask = state.mask
        if mask is not None:
            mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        return self._with_masks(replace(state, hidden=hidden, mask=mask, prefix=state.prefix + tokens.shape[1]))

    def drop_prefix(self, state: State, count: int) -> State:
        mask = None if state.mask is None else state.mask[:, count:]
        shorter = replace(state, hidden=state.hidden[:, count:], mask=mask, prefix=state.prefix - count)
        return self._with_masks(shorter)

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        """As in the base; queries have no place in the text, so their position bias is 0 everywhere."""
        layers: Any = self.blocks(state.stack)[state.index].layer
        seen = layers[0].layer_norm(state.hidden)
        queries = self._read(layers[0], layers[0].SelfAttention, queries, seen, state.mask)
        if state.stack == "decoder":
            memory = state.context["memory"]
            queries = self._read(layers[1], layers[1].EncDecAttention, queries, memory.hidden, memory.mask)
        return layers[-1](queries)

    def _read(self, layer: Any, attention: Any, queries: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        width = self.model.config.d_kv
        q = split_heads(attention.q(layer.layer_norm(queries)), width)
        k, v = split_heads(attention.k(seen), width), split_heads(attention.v(seen), width)
        dropout = attention.dropout if attention.training else 0.0
        read = attend(q, k, v, mask, scale=1.0, dropout=dropout, eager=attention.config._attn_implementation == "eager")
        return queries + layer.dropout(attention.o(read))

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        """Mean over the real tokens (used by scores and classification heads; text-to-text needs no pooling)."""
        last, mask = last[:, state.prefix :], None if state.mask is None else state.mask[:, state.prefix :]
        if mask is None:
            return last.mean(1)
        weights = mask.to(last.dtype).unsqueeze(-1)
        return (last * weights).sum(1) / weights.sum(1).clamp(min=1)

    def idle_parameters(self, stacks: Sequence[str], *, speaks: bool) -> list[nn.Parameter]:
        """The decoder, where a head on the encoder answers."""
        if "decoder" in stacks:
            return []
        used = {id(p) for p in self.model.encoder.parameters()}
        return [p for p in self.model.parameters() if id(p) not in used]

    def _words(self, last: Tensor) -> Tensor:
        if self.model.config.scale_decoder_outputs:  # the library ties always and keeps what v1.1 says of it here
            last = last * self.model.config.d_model**-0.5
        return self.model.lm_head(last)

    def untie_language_head(self) -> nn.Module:
        """As in the base; the factor that tied heads take their input by is folded into the new weights."""
        head: Any = super().untie_language_head()
        if self.model.config.scale_decoder_outputs:
            with torch.no_grad():
                head.weight.mul_(self.model.config.d_model**-0.5)
            self.model.config.scale_decoder_outputs = False
        return head

    def shift_right(self, labels: Tensor) -> Tensor:
        return self.model._shift_right(labels)

    def new_cache(self) -> EncoderDecoderCache:
        config = self._stack("decoder").config
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

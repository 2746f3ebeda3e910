"""The settings under which papers of 2022 measured: eager attention, key/value cache in training, everything kept.

Transformers 4.6, which the LST paper's code builds on, attends eagerly, returns the decoder's keys and values from
every forward pass, training included, and keeps them as they leave their projections. Today's cache concatenates
them into new tensors, which attention then reads without a copy of its own; so a cache that keeps what it is given
stands in for it here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache


class KeptLayer(DynamicLayer):
    """A cache layer that keeps the first keys and values as they come, views of the projections' outputs."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def keep_as_given(cache: Any) -> Any:
    """Let every key/value cache found in `cache` (the backbone's, a side network's) keep what it is given."""
    if isinstance(cache, EncoderDecoderCache):
        keep_as_given(cache.self_attention_cache)
        keep_as_given(cache.cross_attention_cache)
    elif isinstance(cache, Cache):
        cache.layers = [KeptLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = KeptLayer
    elif isinstance(cache, dict):
        for part in cache.values():
            keep_as_given(part)
    elif isinstance(cache, (list, tuple)):
        for part in cache:
            keep_as_given(part)
    elif hasattr(cache, "__dict__"):
        keep_as_given(vars(cache))
    return cache


def attend_eagerly(model: nn.Module) -> None:
    """Compute the attention matrix, in transformers' models and in timm's, whatever they were built with."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) is not None:
            config._attn_implementation = "eager"  # type: ignore[union-attr]
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]

"""Greedy decoding with any method that speaks: an encoder-decoder's answer, a decoder's continuation."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from transfer_run.backbones.base import Batch


class Speaker(Protocol):
    """What is asked of a method (`methods/base.py` says what each of these is)."""

    @property
    def backbone(self) -> Any: ...
    def __call__(self, batch: Batch, /) -> Tensor: ...
    def encode(self, batch: Batch) -> Any: ...
    def decode(self, batch: Batch, memory: Any) -> Tensor: ...
    def new_cache(self) -> Any: ...


@torch.no_grad()
def written(method: Speaker, batch: Batch, max_length: int, use_cache: bool = True) -> Tensor:
    """What an encoder-decoder writes (B, <= max_length), the start token left out, stopped when every row has ended.

    Args:
        use_cache: decode one token a step with key/value caches; False recomputes the prefix (for tests).
    """
    memory, cache = method.encode(batch), method.new_cache() if use_cache else None
    rows = batch["input_ids"].shape[0]
    config = method.backbone.model.config
    ids = batch["input_ids"].new_full((rows, 1), config.decoder_start_token_id)
    ended = torch.zeros(rows, dtype=torch.bool, device=ids.device)
    for _ in range(max_length):
        last = ids[:, -1:] if use_cache else ids
        step: dict[str, Any] = {"input_ids": batch["input_ids"], "decoder_input_ids": last}
        if use_cache:
            step["cache"] = cache
        token = method.decode(step, memory)[:, -1].argmax(-1)
        token = torch.where(ended, config.pad_token_id, token)
        ids = torch.cat([ids, token[:, None]], dim=1)
        ended |= token == config.eos_token_id
        if bool(ended.all()):
            break
    return ids[:, 1:]


@torch.no_grad()
def continued(method: Speaker, batch: Batch, max_length: int, use_cache: bool = True) -> Tensor:
    """What follows each row's last real token, wherever the padding stands: (B, <= max_length), by a decoder alone."""
    ids, config = batch["input_ids"], method.backbone.model.config
    mask = batch.get("attention_mask", torch.ones_like(ids))
    cache, prompt, new = method.new_cache() if use_cache else None, ids.shape[1], ids
    rows, last = torch.arange(len(ids), device=ids.device), (torch.arange(prompt, device=ids.device) * mask).amax(1)
    ended = torch.zeros_like(last, dtype=torch.bool)
    pad = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    for _ in range(max_length):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        step: dict[str, Any] = {"input_ids": new, "attention_mask": mask, "position_ids": positions}
        logits = method(step | {"cache": cache} if use_cache else step)
        token = torch.where(ended, pad, logits[rows, last].argmax(-1))
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, mask.new_ones(len(ids), 1)], 1)
        new = ids[:, -1:] if use_cache else ids
        last = torch.full_like(last, new.shape[1] - 1)
        ended |= token == config.eos_token_id
        if bool(ended.all()):
            break
    return ids[:, prompt:]

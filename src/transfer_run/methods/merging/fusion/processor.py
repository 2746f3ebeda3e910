"""Logits fusion in transformers' own `generate`: a logits processor that owns the small models and their caches.

fusion = FusionProcessor(small, [expert], attention_mask=batch["attention_mask"])
large.generate(**batch, logits_processor=[fusion])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache

from transfer_run.methods.merging.fusion.search import Search, fuse, grid_values


class FusionProcessor(LogitsProcessor):
    """The raw scores of the large model, with what the experts changed in the small one added to them.

    transformers applies it before temperature and top-p. Left padding, positions and the order of beams follow the
    large model's: a row whose beginning is another row's of the step before takes that row's cache, and a text that is
    not the last one continued is read from its start.

    Args:
        small, experts: causal language models of transformers, in eval mode.
        alpha: `dynamic`, or a weight for every expert (1.0 is proxy tuning).
        grid: the weights to choose from.
        joint: every combination of weights, not one expert at a time.
        attention_mask: that of the prompts (B, length), which a batch of several lengths needs.
    """

    def __init__(
        self,
        small: Any,
        experts: Sequence[Any],
        *,
        alpha: Literal["dynamic"] | float = "dynamic",
        grid: Sequence[float] | None = None,
        joint: bool = False,
        attention_mask: Tensor | None = None,
    ) -> None:
        self.models, self.prompt_mask = [small, *experts], attention_mask
        values = grid_values(0.0, 2.0, 0.1) if grid is None else list(grid)
        self.alpha: Search | list[float] = (
            Search.over(len(experts), values, joint=joint)
            if alpha == "dynamic"
            else [float(alpha)] * len(experts)
        )  # fmt: skip
        self._seen: Tensor | None = None
        self._caches: list[Any] = []
        self.weights: Tensor | None = None
        """Of the last step, (rows, T)."""

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The fused scores (rows, V); entries that only the large model has are those of forbidden tokens."""
        new = self._follow(input_ids)
        mask = self._mask(input_ids)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits = [
            model(
                input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits[:, -1]
            for model, cache in zip(self.models, self._caches, strict=True)
        ]
        size = min(each.shape[-1] for each in (scores, *logits))
        small, *experts = (each[:, :size].to(scores.device) for each in logits)
        fused, self.weights = fuse(scores[:, :size], small, torch.stack(experts), self.alpha)
        out = torch.full_like(scores, -torch.inf)
        out[:, :size] = fused.to(scores.dtype)
        return out

    def _follow(self, input_ids: Tensor) -> Tensor:
        """Bring the caches into the order of the rows; the tokens that they have not seen yet."""
        before, self._seen = self._seen, input_ids
        if before is not None and before.shape == (len(input_ids), input_ids.shape[1] - 1):
            same = (input_ids[:, None, :-1] == before[None]).all(-1)  # (rows, rows before)
            own = torch.eye(len(before), dtype=torch.bool, device=same.device)
            source = torch.where(
                (same & own).any(1), torch.arange(len(before), device=same.device), same.int().argmax(1)
            )
            if bool(same.any(1).all()):
                if bool((source != torch.arange(len(before), device=same.device)).any()):
                    for cache in self._caches:
                        cache.reorder_cache(source)
                return input_ids[:, -1:]
        self._caches = [DynamicCache(config=model.config) for model in self.models]
        return input_ids

    def _mask(self, input_ids: Tensor) -> Tensor:
        """1 for every token but the padding in front of the prompts."""
        mask = torch.ones_like(input_ids)
        if self.prompt_mask is not None:
            prompt = self.prompt_mask.to(input_ids.device)
            rows = prompt.repeat_interleave(len(input_ids) // len(prompt), 0)
            mask[:, : prompt.shape[1]] = rows[:, : mask.shape[1]]
        return mask

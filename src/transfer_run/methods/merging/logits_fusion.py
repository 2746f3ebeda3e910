"""Dynamic logits fusion: small tuned models steer a large untuned one while it writes; nothing is trained.

    large ── M_L ─────────────────────┐
    small ── M_S ──┐                  ├── M_L + sum_t alpha_t (M_t - M_S) ──> next token
    experts ─ M_t ─┴── M_t - M_S ─────┘   alpha: anew for every row and token

Fan, Lu, Wei, Tian, Qu, Chen, Cheng, "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion", NeurIPS
2024, arXiv 2406.15480. The large model is the run's backbone; the small one and the experts are sources. Where a user
generates with transformers, `fusion/processor.py` does the same inside `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.merging.fusion.search import Search, fuse, grid_values
from transfer_run.methods.merging.versions.tokenizers import compare
from transfer_run.task import Task

SMALL = "small"


GRID = {"min": 0.0, "max": 2.0, "step": 0.1}
"""Weights that a search tries."""


class LogitsFusion(Method):
    """Answers with the fused logits of the backbone, `sources.small` and the experts.

    Args:
        experts: names of the sources that were tuned from `sources.small`.
        alpha: `dynamic`, or fixed weights: a number for all, or a list with one an expert (1 is proxy tuning).
        grid: `min`, `max` and `step` of the weights to choose from.
        multi: one expert at a time, or every combination of weights (`joint`).
    """

    trains = False
    ships = "nothing"
    needs_backbone_gradient = False

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        experts: Sequence[str] = ("expert",),
        alpha: Literal["dynamic"] | float | Sequence[float] = "dynamic",
        grid: Mapping[str, float] = GRID,
        multi: Literal["one_expert", "joint"] = "one_expert",
    ) -> None:
        super().__init__(backbone, task, backbone_dropout=False)
        self.requires_grad_(False)
        if not experts or len(set(experts)) < len(experts):
            raise UserError(
                f"method.experts={list(experts)} does not name the experts once each.",
                where="method.experts",
                remedy="method.experts=[expert], a name below `sources` each",
            )
        self.experts = list(experts)
        limits = {**GRID, **grid}
        values = grid_values(limits["min"], limits["max"], limits["step"])
        self.alpha: Search | list[float] = (
            Search.over(len(experts), values, joint=multi == "joint")
            if alpha == "dynamic"
            else fixed(alpha, len(experts))
        )
        self.register_buffer("used", torch.zeros(len(experts) + 1, dtype=torch.float64), persistent=False)
        self.used: Tensor

    # ---- the small models
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """Keep the small model and the experts, frozen.

        Raises:
            UserError: one of them speaks another language than the backbone.
        """
        for name in (SMALL, *self.experts):
            model = load_source(name)
            if not model.form.speaks:
                raise UserError(
                    f"The source {name!r} has no next-token logits.",
                    where=f"sources.{name}",
                    remedy="name a run of dataset.task=language_modeling, or a causal language model",
                )
            self.hold(name, model)

    def prepare(self, context: Context) -> None:
        """One token must have one number in all of them."""
        folders = {name: context.sources[name] for name in (SMALL, *self.experts)}
        for line in compare(folders):
            context.log(line)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        return ()

    @property
    def small_models(self) -> list[Any]:
        """The small model, then the experts."""
        return [self.get_submodule(name) for name in (SMALL, *self.experts)]

    # ---- a batch
    def language(self, batch: Batch) -> Tensor:
        """The fused logits (B, T, V) behind each token."""
        caches: Any = batch.get("cache")
        parts = [batch] * (len(self.experts) + 2)
        if caches is not None:
            parts = [{**batch, "cache": cache} for cache in caches]
        large = super().language(parts[0])
        small, *experts = (m.language(part) for m, part in zip(self.small_models, parts[1:], strict=True))
        flat = [each.flatten(0, 1) for each in (large, small, *experts)]
        size = min(each.shape[-1] for each in flat)
        tuned = torch.stack([each[:, :size] for each in flat[2:]])
        fused, weights = fuse(flat[0], flat[1], tuned, self.alpha)
        self._count(weights, batch.get("attention_mask"), large.shape[1])
        return fused.view(*large.shape[:2], -1)

    def new_cache(self) -> list[Any]:
        """One for the large model, one for each small one."""
        return [super().new_cache(), *(model.new_cache() for model in self.small_models)]

    def _count(self, weights: Tensor, mask: Tensor | None, length: int) -> None:
        """Add the weights of the tokens that are no padding."""
        real = weights.new_ones(len(weights)) if mask is None else mask[:, -length:].flatten().to(weights.dtype)
        self.used[:-1] += (weights * real.unsqueeze(-1)).sum(0).double()
        self.used[-1] += real.sum().double()

    def conclude(self, context: Context) -> dict[str, Any]:
        """The mean weight of every expert over the tokens of all passes."""
        used = self.used.tolist()
        means = {name: total / max(1.0, used[-1]) for name, total in zip(self.experts, used, strict=False)}
        context.log("mean weight: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
        return {"alpha": means, "forward_passes_a_token": {"large": 1, "small": len(self.experts) + 1}}


def fixed(alpha: Any, experts: int) -> list[float]:
    """Fixed weights, one an expert.

    Raises:
        UserError: they are no numbers, or another number of them.
    """
    values = list(alpha) if isinstance(alpha, Sequence) and not isinstance(alpha, str) else [alpha] * experts
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    if not numbers or len(values) != experts:
        raise UserError(
            f"method.alpha={alpha} is neither `dynamic` nor a number for each of {experts} experts.",
            where="method.alpha",
            remedy="method.alpha=dynamic, or method.alpha=1.0 (proxy tuning)",
        )
    return [float(each) for each in values]

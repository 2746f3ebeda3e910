"""UniPT: Universal Parallel Tuning for Transfer Learning with Efficient Parameter and Memory (Diao et al.; CVPR 2024).

    tap 0 ─ down ─▶ F_0 ─┐
    ...                  ├─ each read by the guide alone ─▶ F_l' ─ weighed by confidence, summed ─▶ G
    tap L ─ down ─▶ F_L ─┘                                                                          │
                    └───────────────────────────── + ◀── projection ────────────────────────────────┘
                                                   └─ up ─▶ Y, in the place of the backbone's last hidden state

arXiv 2308.14316. Nothing is sequential over depth and no gradient reaches the backbone, so the side network asks
nothing of the backbone's architecture and is not cut out of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.form import find_form
from transfer_run.methods.side_tuning.ladder.ladder import LadderCache, LadderMemory, MemoryMode, task_stacks
from transfer_run.methods.side_tuning.parallel.interaction import Past, seen_mean
from transfer_run.methods.side_tuning.parallel.tap_tuning import (
    ALL,
    Layers,
    SideNorm,
    TapTuning,
    chosen,
    divided,
    normal,
    settled,
    variant_of,
    xavier,
)
from transfer_run.methods.side_tuning.parallel.unipt_sides import ConvSide, PooledSide, TokenSide
from transfer_run.task import Task

Variant = Literal["auto", "tokens", "joint", "pooled", "cnn", "encdec"]
VARIANTS = {
    "tokens": "one stack of tokens, VSE-infinity's text module",
    "joint": "one stack of tokens, CLIP-ViL",
    "pooled": "one global vector, CLIP4Clip",
    "cnn": "stages of a CNN, VSE-infinity's image module",
    "encdec": "encoder and decoder, MDETR",
}
_TOKENS = {"reduction": 2, "projection": "linear", "up_relu": True, "identity": True, "eps": 1e-8, "out_dim": None}
FORMS: dict[str, dict[str, Any]] = {
    "tokens": _TOKENS,
    "joint": {**_TOKENS, "projection": "mlp", "up_relu": False, "eps": 1e-6},
    "pooled": {"reduction": 1, "eps": 1e-6},
    "cnn": {"reduction": 2, "up_relu": True, "identity": True, "eps": 1e-8, "out_dim": None},
    "encdec": {"reduction": 2, "projection": "mlp", "up_relu": True, "identity": True, "eps": 1e-7},
}
"""What the released sub-projects do differently; the names are those of the method's settings."""


class UniPT(TapTuning):
    """Universal Parallel Tuning.

    Args:
        variant: the paper's form of the side network; `auto`: `tokens`, on CLIP `pooled`, on CNNs `cnn`, for text to
            text `encdec`. In retrieval each tower has a side network of its own, and `pooled` works in the space of
            both (CLIP4Clip); `tokens` and `joint` go through the frozen projections.
        reduction: the side width is the output's width divided by it. Null, here and below: as the variant has it.
        taps: numbers of the taps that the guide reads, 0 = embedding, l = block l; `encoder` is also the only stack of
            other families. Null: all below the guide, which is the last block's output (`pooled`: that too).
        projection: `linear` or `mlp`, P in F_L + P(G).
        up_relu: ReLU before the output map.
        identity: A + I instead of A.
        eps: in the normalisation of the attention.
        out_dim: E, the width of the output tokens (their mean is then the head's input); null: the backbone's.
        backbone_dropout: the frozen model's dropout is active in training, as in the released code.
        memory_mode: `official` keeps for backward what the released code keeps. Equal numbers.

    Raises:
        UserError: a variant that is not possible on this backbone for this task, a setting the variant does not have,
            taps that do not exist.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, variant: Variant = "auto", reduction: int | None = None,
        taps: Layers = ALL, projection: Literal["linear", "mlp"] | None = None, up_relu: bool | None = None,
        identity: bool | None = None, eps: float | None = None, out_dim: int | None = None,
        backbone_dropout: bool = True, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        self.variant = variant_of(backbone, task, variant, VARIANTS)
        given = {"reduction": reduction, "projection": projection, "up_relu": up_relu, "identity": identity,
                 "eps": eps, "out_dim": out_dim}  # fmt: skip
        form = settled(FORMS[self.variant], self.variant, given)
        if out_dim is not None and (reader := find_form(task.form).reader):
            raise UserError(
                f"The frozen {reader} reads the backbone's own width.",
                where="method.out_dim",
                remedy="method.out_dim=null",
            )
        super().__init__(backbone, task, backbone_dropout=backbone_dropout, memory_mode=memory_mode)
        stacks = task_stacks(backbone, task)
        self.targets = {stack: self._targets(stack, taps) for stack in stacks}
        with torch.device(next(backbone.parameters()).device):
            self.sides = nn.ModuleDict({stack: self._side(stack, form) for stack in stacks})
            self.norm = SideNorm(backbone, stacks[-1]) if self.form.speaks else None
            self.out = form.get("out_dim")
            if self.out is not None and self.out != backbone.feature_width:
                self.backbone.head = nn.Linear(self.out, task.num_labels)

    # ---- building
    def _targets(self, stack: str, taps: Layers) -> list[int]:
        depth, first = self.backbone.depth(stack), 1 if self.variant == "cnn" else 0
        last = depth if self.variant == "pooled" else depth - 1
        return chosen(self.backbone, stack, taps, range(first, last + 1), "method.taps")

    def _side(self, stack: str, form: dict[str, Any]) -> nn.Module:
        backbone, targets, lean = self.backbone, self.targets[stack], self.lean
        width = backbone.width(stack)
        if self.variant == "pooled":
            widths = [backbone.width(stack, index - 1) for index in targets]
            out = self.anchor_width(stack)
            return PooledSide(widths, out, divided(out, form["reduction"]), eps=form["eps"], lean=lean)
        if self.variant == "cnn":
            channels = {index: backbone.width(stack, index - 1) for index in targets}
            out = form["out_dim"] or backbone.feature_width
            return ConvSide(channels, width, out, divided(out, form["reduction"]), form, lean=lean)
        remembers = self.variant == "encdec" and stack == "encoder"
        out = form.get("out_dim") or width
        side = TokenSide(
            width, divided(out, form["reduction"]), targets, form, out=None if remembers else out,
            reads_memory=self.variant == "encdec" and not remembers, causal=stack == "decoder" and self.form.speaks,
            lean=lean,
        )  # fmt: skip
        if self.variant == "joint":
            normal(side, 0.02)
        elif self.variant == "encdec":
            xavier(side)
        return side

    # ---- running
    def tapped(self, batch: Batch, stack: str, memory: State | None = None) -> tuple[list[Tensor], Tensor, State]:
        """The targets' taps, the guide's, and the backbone's state after its last block."""
        state = self.open(batch, stack, memory)
        last = self.backbone.depth(stack)
        taps, state = self.read(state, {*self.targets[stack], last})
        return [taps[index] for index in self.targets[stack]], taps[last], state

    def stack_features(self, batch: Batch, stack: str) -> Tensor:
        """The head's input: Y in the place of the last hidden state, under the backbone's own pooling; with an output
        width of its own, and on CNNs, the mean of Y."""
        taps, guide, state = self.tapped(batch, stack)
        side: Any = self.sides[stack]
        if self.variant == "pooled":
            anchor = self.anchor(state)
            pooled: Tensor = side(taps, anchor, state.mask, self.position(state))
            return pooled.to(anchor.dtype)
        if self.variant == "cnn":
            cells: Tensor = side(taps, guide).mean(1)
            return cells
        tokens: Tensor = side(taps, guide, state.mask)
        if self.out is not None:
            return seen_mean(tokens, state.mask).squeeze(1)
        return self.backbone.pool(tokens.to(state.hidden.dtype), state)

    def embedding(self, batch: Batch, stack: str) -> Tensor:
        return self.stack_features(batch, stack) if self.variant == "pooled" else super().embedding(batch, stack)

    def encode(self, batch: Batch) -> LadderMemory:
        taps, guide, state = self.tapped(batch, "encoder")
        memory = state.with_hidden(self.sides["encoder"](taps, guide, state.mask))
        with self.frozen():
            return LadderMemory(self.backbone.finished_state(state), memory)

    def last_hidden(self, batch: Batch, memory: LadderMemory | None) -> Tensor:
        stack = "decoder"
        taps, guide, state = self.tapped(batch, stack, None if memory is None else memory.backbone)
        cache: Any = batch.get("cache")
        read: Sequence[Tensor | None] = () if memory is None else (memory.side.hidden, memory.side.mask)
        tokens = self.sides[stack](taps, guide, state.mask, *read, past=None if cache is None else cache.side)
        assert self.norm is not None
        hidden: Tensor = self.norm(tokens)
        return hidden.to(state.hidden.dtype)

    def new_cache(self) -> LadderCache:
        return LadderCache(self.backbone.new_cache(), Past())

"""SHERL: Synthesizing High Accuracy and Efficient Memory for Resource-Limited Transfer Learning (ECCV 2024).

    tap 0 ─┐                                          late route
    ...    ├─ sensing adapter (`sensing.py`) ─▶ V ─▶ frozen block N, in the graph ─▶ head
    tap N-1┘        early route                      frozen blocks 1 to N-1 leave no graph

Diao et al., arXiv 2407.07523. Gradients pass through the last K blocks only (K = 1 in the paper). On T5 the encoder's
adapter makes a second memory, which the late decoder block reads; on CLIP there is no late route and Y replaces the
global vector.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.ladder.ladder import LadderMemory, MemoryMode, task_stacks
from transfer_run.methods.side_tuning.parallel.early_route import ConvSensing, PooledSensing, Sensing
from transfer_run.methods.side_tuning.parallel.tap_tuning import (
    ALL,
    Layers,
    SideNorm,
    TapTuning,
    chosen,
    divided,
    in_autocast_dtype,
    normal,
    settled,
    variant_of,
)
from transfer_run.task import Task

Variant = Literal["auto", "tokens", "joint", "pooled", "cnn", "encdec"]
VARIANTS = {
    "tokens": "one stack of tokens, VSE-infinity's text module",
    "joint": "one stack of tokens, CLIP-ViL",
    "pooled": "one global vector, CLIP4Clip",
    "cnn": "stages of a CNN, VSE-infinity's image module",
    "encdec": "encoder and decoder, T5",
}
_TOKENS = {"down": "norm", "reduction": 2, "late_blocks": 1, "guide_mlp": False, "up_norm": True, "up_dropout": 0.1,
           "eps": 1e-8, "final_side_norm": False, "gate_init": 0.0, "gate_T": 0.1}  # fmt: skip
_GLU = {**_TOKENS, "down": "glu", "up_norm": False, "up_dropout": 0.0, "eps": 1e-6}
FORMS: dict[str, dict[str, Any]] = {
    "tokens": _TOKENS,
    "joint": _GLU,
    "pooled": {"reduction": 1, "eps": 1e-6, "layer_gates": True, "gate_T": 0.1},
    "cnn": {"reduction": 2, "late_blocks": 1, "eps": 1e-8, "gate_init": 0.0, "gate_T": 0.1},
    "encdec": {**_GLU, "reduction": 8, "final_side_norm": True},
}
"""What the released sub-projects do differently; the names are those of the method's settings."""
START = {"joint": 0.02, "encdec": 0.01}
"""Standard deviation of new linear maps; elsewhere the library's own rule."""


class SHERL(TapTuning):
    """Early and late route.

    Args:
        variant: the paper's form; `auto`: `tokens`, on CLIP `pooled`, on CNNs `cnn`, for text to text `encdec`; a T5
            under a classification head takes the settings of `encdec`. On CLIP `tokens` adds the late route that the
            released code lacks. In retrieval each tower has a side network of its own, and `pooled` works in the space
            of both (CLIP4Clip).
        down: `norm` (Linear, LayerNorm) or `glu`. Null, here and below: as the variant has it.
        reduction: the side width is the backbone's divided by it; `side_width` sets it outright.
        late_blocks: K, blocks that run on V with gradient; of a CNN, units of its last stage. 0: none.
        side_layers: blocks whose output is tapped, from 0; the embedding always is. Null: all. Those that run late
            are left out.
        gate_init, gate_T: g and T in tanh(g / T) H_last.
        guide_mlp: a feed-forward layer on the summed taps (MDETR).
        up_norm, up_dropout: a LayerNorm and dropout behind the output map.
        eps: of the normalisations.
        final_side_norm: a new trained norm in the place of the backbone's frozen last one.
        layer_gates: `pooled`: trained gates on each tap's own token (MSR-VTT); else 1 (MSVD).
        backbone_dropout: the frozen model's dropout is active in training, as in the released code.
        memory_mode: `official` keeps for backward what the released code keeps. Equal numbers.

    Raises:
        UserError: a variant that is not possible on this backbone for this task, a setting the variant does not have,
            layers that do not exist, more late blocks than leave two taps.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, variant: Variant = "auto",
        down: Literal["norm", "glu"] | None = None, reduction: int | None = None, side_width: int | None = None,
        late_blocks: int | None = None, side_layers: Layers = ALL,
        gate_init: float | None = None, gate_T: float | None = None,
        guide_mlp: bool | None = None, up_norm: bool | None = None, up_dropout: float | None = None,
        eps: float | None = None, final_side_norm: bool | None = None, layer_gates: bool | None = None,
        backbone_dropout: bool = True, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        self.variant = variant_of(backbone, task, variant, VARIANTS)
        preset = "encdec" if variant == "auto" and backbone.family == "t5" else self.variant
        given = {"down": down, "reduction": reduction, "late_blocks": late_blocks, "guide_mlp": guide_mlp,
                 "up_norm": up_norm, "up_dropout": up_dropout, "eps": eps, "final_side_norm": final_side_norm,
                 "layer_gates": layer_gates, "gate_init": gate_init, "gate_T": gate_T}  # fmt: skip
        form = settled(FORMS[preset], self.variant, given)
        refuse_idle(form, reduction=reduction, side_width=side_width, gate_T=gate_T)
        super().__init__(backbone, task, backbone_dropout=backbone_dropout, memory_mode=memory_mode)
        self.late = form.get("late_blocks", 0)
        stacks = task_stacks(backbone, task)
        if self.variant == "encdec" and not self.late:
            stacks = stacks[1:]  # no late block would read the encoder's side memory
        self.taps = {stack: self._taps(stack, side_layers) for stack in stacks}
        with torch.device(next(backbone.parameters()).device):
            self.sides = nn.ModuleDict({stack: self._side(stack, form, side_width) for stack in stacks})
            fresh = form.get("final_side_norm", False)
            self.norms = nn.ModuleDict({stack: SideNorm(backbone, stack) for stack in stacks} if fresh else {})
        if preset in START:
            normal(self.sides, START[preset])

    # ---- building
    def stop(self, stack: str) -> int:
        """Blocks (of a CNN: stages) that run without graph: all of an encoder that a decoder reads."""
        depth = self.backbone.depth(stack)
        if self.variant == "cnn":
            return depth - 1
        return depth if self.variant == "encdec" and stack == "encoder" else depth - self.late

    def units(self) -> list[nn.Module]:
        """The units of a CNN's last stage, of which the late route takes the last ones."""
        stage = self.backbone.blocks("image")[-1]
        return list(stage.children()) if isinstance(stage, nn.Sequential) else [stage]

    def _taps(self, stack: str, layers: Layers) -> list[int]:
        """Numbers of the taps (0 = embedding), the guide last; -1 is the state before the late units of a CNN."""
        backbone, stop = self.backbone, self.stop(stack)
        room = len(self.units()) if self.variant == "cnn" else backbone.depth(stack) - 1
        if self.late > room:
            raise UserError(
                f"{self.late} late blocks of {backbone.config.get('name')} leave no two taps: at most {room}.",
                where="method.late_blocks",
                remedy=f"method.late_blocks={room} or less",
            )
        kept = chosen(backbone, stack, layers, range(backbone.depth(stack)), "method.side_layers")
        taps = [index + 1 for index in kept if index < stop]
        if self.variant == "cnn":
            inside = self.late < room
            taps += [-1] if inside else []
        else:
            taps = [0, *taps]
        if len(taps) < 2:
            raise UserError(
                f"side_layers {kept} leave {len(taps)} tap before the late blocks; the guide needs another one.",
                where="method.side_layers",
                remedy=f"name blocks below {stop}",
            )
        return taps

    def _side(self, stack: str, form: dict[str, Any], side_width: int | None) -> nn.Module:
        backbone, taps = self.backbone, self.taps[stack]
        width = backbone.width(stack)
        out = self.anchor_width(stack) if self.variant == "pooled" else width
        side = side_width or divided(out, form["reduction"])
        if self.variant == "pooled":
            return PooledSensing(
                [width] * len(taps), out, side, eps=form["eps"], gated=form["layer_gates"],
                temperature=form["gate_T"], lean=self.lean,
            )  # fmt: skip
        if self.variant == "cnn":
            channels = {index: width if index < 0 else backbone.width(stack, index - 1) for index in taps}
            return ConvSensing(channels, side, form, lean=self.lean)
        return Sensing(width, side, taps, form, lean=self.lean)

    # ---- running
    def early(self, batch: Batch, stack: str, memory: State | None = None) -> tuple[list[Tensor], State]:
        """The taps, the guide last, and the state that would enter the late blocks."""
        taps, state = self.read(self.open(batch, stack, memory), self.taps[stack], self.stop(stack))
        return [taps[index] for index in self.taps[stack]], state

    def sensed(self, batch: Batch, stack: str, memory: State | None = None) -> State:
        """The state with V in the place of its hidden state."""
        taps, state = self.early(batch, stack, memory)
        return state.with_hidden(self.sides[stack](taps, state.hidden).to(state.hidden.dtype))

    def finish(self, state: State) -> Tensor:
        """The new trained norm where there is one, else what the backbone ends with."""
        if state.stack not in self.norms:
            return self.backbone.finish(state)
        normed: Tensor = self.norms[state.stack](state.hidden)
        return normed.to(state.hidden.dtype)

    def stack_features(self, batch: Batch, stack: str) -> Tensor:
        if self.variant == "pooled":
            return self._pooled(batch, stack)
        state = self._conv(batch) if self.variant == "cnn" else self.backbone.run(self.sensed(batch, stack))
        return self.backbone.pool(self.finish(state), state)

    def _pooled(self, batch: Batch, stack: str) -> Tensor:
        taps, state = self.early(batch, stack)
        anchor = self.anchor(state)
        pooled: Tensor = self.sides[stack](taps, anchor, state.mask, self.position(state))
        return pooled.to(anchor.dtype)

    def embedding(self, batch: Batch, stack: str) -> Tensor:
        return self._pooled(batch, stack) if self.variant == "pooled" else super().embedding(batch, stack)

    def _conv(self, batch: Batch) -> State:
        """The late route of a CNN: the last units of its last stage."""
        units, wanted = self.units(), self.taps["image"]
        taps, state = self.read(self.open(batch, "image"), wanted, self.stop("image"))
        hidden = state.hidden
        with self.frozen():
            for unit in units[: len(units) - self.late]:
                hidden = unit(hidden)
        if -1 in wanted:
            taps[-1] = in_autocast_dtype(hidden)
        hidden = self.sides["image"]([taps[index] for index in wanted], hidden).to(hidden.dtype)
        for unit in units[len(units) - self.late :]:
            hidden = unit(hidden)
        return state.with_hidden(hidden)

    def encode(self, batch: Batch) -> LadderMemory:
        """The ordinary memory, which early decoder blocks read, and the side memory for the late ones."""
        if "encoder" not in self.sides:
            with self.frozen():
                plain = self.backbone.finished_state(self.run(self.open(batch, "encoder")))
            return LadderMemory(plain, plain)
        taps, state = self.early(batch, "encoder")
        with self.frozen():
            plain = self.backbone.finished_state(state)
        side = state.with_hidden(self.sides["encoder"](taps, state.hidden).to(state.hidden.dtype))
        return LadderMemory(plain, side.with_hidden(self.finish(side)))

    def last_hidden(self, batch: Batch, memory: LadderMemory | None) -> Tensor:
        if memory is None:
            return self.finish(self.backbone.run(self.sensed(batch, "decoder")))
        state = self.sensed(batch, "decoder", memory.backbone)
        return self.finish(self.backbone.run(self.backbone.with_memory(state, memory.side)))


def refuse_idle(form: dict[str, Any], *, reduction: int | None, side_width: int | None, gate_T: float | None) -> None:
    """Raises UserError for a given setting that another one leaves without effect."""
    if reduction is not None and side_width is not None:
        idle, why = "reduction", f"side_width={side_width}"
    elif gate_T is not None and form.get("layer_gates") is False:
        idle, why = "gate_T", "layer_gates=false"
    else:
        return
    raise UserError(f"{why} leaves {idle} without effect.", where=f"method.{idle}", remedy=f"method.{idle}=null")

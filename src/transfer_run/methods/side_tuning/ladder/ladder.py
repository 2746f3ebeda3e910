"""Side-tuning on a frozen backbone: the ladder, and the method that runs one beside every stack.

    tap zero ─ first ─▶ s ─ mix ─ step ─▶ s ─ mix ─ step ─▶ ... ─ output ─▶ head
                            ▲                 ▲
                         map(tap 1)        map(tap 2)        taps: outputs of the frozen blocks, one at a time

A ladder's parts are modules that a method chooses: `first` and `maps` (tap -> side width), `mix` (`mixing.py`),
`steps` (`side_blocks.py`, or `Identities`), `feedback` into the backbone's stream, and the method's `output`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.methods.base import Method
from transfer_run.methods.form import find_form
from transfer_run.methods.forms.text_to_text import with_decoder_inputs
from transfer_run.task import Task

MemoryMode = Literal["efficient", "official"]
Feedback = Callable[[int, Tensor, Tensor], Tensor]
"""(index, hidden state after block `index`, side stream) -> hidden state that goes on (DTL); runs with gradient."""


class Identities(nn.Module):
    """No step between two ladders (Res-Tuning-Bypass, DTL): the side stream is mixed and nothing else.

    Args:
        kept: layers whose output the ladder takes in.
    """

    def __init__(self, kept: list[int]) -> None:
        super().__init__()
        self.kept = kept

    def begin(self, side: State, memory: State | None = None) -> State:
        return side

    def run(self, side: State, index: int) -> Tensor:
        return side.hidden

    def finish(self, side: State) -> Tensor:
        return side.hidden

    def new_cache(self) -> None:
        return None


class Ladder(nn.Module):
    """The side network of one stack.

    Args:
        first: tap zero (B, T, D) -> s_0 (B, T, d').
        maps: layer -> map of that block's output to the side's width; a layer without one takes no tap.
        mix: (index, s, ladder) -> s.
        steps: what runs between two ladders, `SideBlocks` or `Identities`; `steps.kept` are the layers that have one.
        fuse_after: mix after the side block instead of before it.
        feedback: what the side stream sends back into the backbone's; None for a frozen backbone stream.
    """

    def __init__(
        self, first: nn.Module, maps: Mapping[int, nn.Module], mix: nn.Module, steps: nn.Module, *,
        fuse_after: bool = False, feedback: Feedback | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first = first
        self.maps = nn.ModuleDict({str(index): module for index, module in maps.items()})
        self.mix, self.fuse_after, self.feedback = mix, fuse_after, feedback
        self.steps: Any = steps

    @property
    def reach(self) -> int:
        """How many blocks of the backbone the ladder has to see."""
        return 1 + max((int(index) for index in self.maps), default=-1)

    def rung(self, index: int, side: State, tap: Tensor) -> State:
        """Side layer `index`: the ladder is mixed in, the side block runs."""
        if not self.fuse_after:
            side = self._mixed(index, side, tap)
        side = replace(side, hidden=self.steps.run(side, index), index=index + 1)
        return self._mixed(index, side, tap) if self.fuse_after else side

    def _mixed(self, index: int, side: State, tap: Tensor) -> State:
        if str(index) not in self.maps:
            return side
        ladder = self.maps[str(index)](_as(tap, self.maps[str(index)]))
        if extra := side.context.get("extra", 0):
            ladder = F.pad(ladder, (0, 0, 0, extra))  # extra tokens stand behind the text and have no ladder
        return replace(side, hidden=self.mix(index, side.hidden, ladder))


@dataclass
class LadderMemory:
    """What decoders read of the source: the finished encoder states of both streams."""

    backbone: State
    side: State


@dataclass
class LadderCache:
    """Key/value caches of both streams of a decoder."""

    backbone: Any
    side: Any

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows` (beam search: which hypothesis each one goes on from)."""
        for cache in (self.backbone, self.side):
            if cache is not None:
                cache.batch_select_indices(rows)


class LadderTuning(Method):
    """A frozen backbone, a ladder beside each stack, and an output in the place of the backbone's last state.

    Args:
        ladders: stack -> ladder, for the stacks that the task runs through.
        output: (finished side stream, `last`) -> (B, T, D), where `last()` gives the backbone's finished state; of two
            towers one each (`outputs`).
        reads_last: the output, or the loss, reads the backbone's last state.
        memory_mode: `efficient` runs the frozen part without graph and stops it after the last tap; `official`
            leaves the bookkeeping to autograd. Equal numbers.
    """

    needs_backbone_gradient = False

    def __init__(
        self, backbone: Backbone, task: Task, ladders: Mapping[str, Ladder], output: nn.Module, *,
        reads_last: bool = False, backbone_dropout: bool = True, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        super().__init__(backbone, task, backbone_dropout=backbone_dropout)
        self.freeze_backbone()
        self.ladders = nn.ModuleDict(ladders)
        self.output, self.reads_last = output, reads_last
        self.memory_mode = memory_mode

    def frozen(self, stack: str) -> AbstractContextManager[Any]:
        """For what no gradient has to pass: all of the backbone, unless the side stream feeds back into it."""
        ladder: Any = self.ladders[stack]
        lean = self.memory_mode == "efficient" and ladder.feedback is None
        return torch.no_grad() if lean else nullcontext()

    @property
    def last_stack(self) -> str:
        return list(self.ladders)[-1]

    def ends_in(self, stack: str) -> bool:
        """Does the stack's own output go to the head? An encoder's goes to its decoder, each of two towers' does."""
        return stack in self.form.read(self.backbone)

    # ---- one stack
    def climb(self, batch: Batch, stack: str, memory: LadderMemory | None = None) -> tuple[State, State]:
        """Run both streams of `stack`: the side state after its last block, and the backbone's where it stopped."""
        ladder: Any = self.ladders[stack]
        cache: Any = batch.get("cache")
        source = batch if cache is None else {**batch, "cache": cache.backbone}
        with self.frozen(stack):
            state = self.embed(source, stack, None if memory is None else memory.backbone)
            tap_zero = self._tap_zero(source, state, ladder, memory)
        side = self.begin(ladder, tap_zero, state, batch)
        if cache is not None and stack == self.last_stack:
            side.context["cache"] = cache.side
        side = ladder.steps.begin(side, None if memory is None else memory.side)
        reach = self.depth_needed(stack)
        for index in range(self.backbone.depth(stack)):
            if index < reach:
                state = self._step(state, ladder, side)
            if index in ladder.steps.kept:
                side = self._rung(ladder, index, side, state.hidden)
        return side, state

    def depth_needed(self, stack: str) -> int:
        """Blocks of `stack` that the backbone runs: all, unless nothing reads it above the last tap."""
        ladder: Any = self.ladders[stack]
        read = self.reads_last or ladder.feedback is not None or not self.ends_in(stack)
        return self.backbone.depth(stack) if read or self.memory_mode == "official" else ladder.reach

    def begin(self, ladder: Ladder, tap_zero: Tensor, state: State, batch: Batch) -> State:
        """The side stream at its start; a method may append tokens that the backbone does not see."""
        hidden = ladder.first(_as(tap_zero, ladder.first))
        return State(hidden, state.stack, mask=state.mask, context={"positions": batch.get("position_ids")})

    def _tap_zero(self, batch: Batch, state: State, ladder: Ladder, memory: LadderMemory | None) -> Tensor:
        """The embedding under a dropout draw of the side's own, as in LST's released code."""
        rate = getattr(ladder.steps, "input_dropout", 0.0)
        if not (self.training and rate):
            return state.hidden
        if self.backbone.model.training:  # the backbone's embedding has its own draw in it: embed once more
            return self.embed(batch, state.stack, None if memory is None else memory.backbone).hidden
        return F.dropout(state.hidden, rate)

    def _step(self, state: State, ladder: Ladder, side: State) -> State:
        index = state.index
        with self.frozen(state.stack):
            state = self.backbone.step(state)
        if ladder.feedback is None:
            return state
        return state.with_hidden(ladder.feedback(index, state.hidden, side.hidden))

    def _rung(self, ladder: Ladder, index: int, side: State, tap: Tensor) -> State:
        """`Ladder.rung`; under activation checkpointing only its inputs, the tap and the side state, are kept."""
        keeps_all = not (self.backbone.activation_checkpointing and self.training and torch.is_grad_enabled())
        if keeps_all or side.context.get("cache") is not None:  # running a block twice would fill its cache twice
            return ladder.rung(index, side, tap)

        def hidden_of(hidden: Tensor, tap: Tensor) -> Tensor:
            return ladder.rung(index, side.with_hidden(hidden), tap).hidden

        return replace(side, hidden=checkpoint(hidden_of, side.hidden, tap, use_reentrant=False), index=index + 1)

    # ---- the model
    def encode(self, batch: Batch) -> LadderMemory:
        side, state = self.climb(batch, "encoder")
        with self.frozen("encoder"):
            finished = self.backbone.finished_state(state)
        return LadderMemory(finished, replace(side, hidden=self.side_steps("encoder").finish(side)))

    def side_steps(self, stack: str) -> Any:
        return self.ladders[stack].steps

    def last_hidden(self, batch: Batch, memory: LadderMemory | None, stack: str) -> tuple[Tensor, State]:
        """The output of a stack (B, T, D), in the backbone's place, and the backbone's own state."""
        side, state = self.climb(batch, stack, memory)
        output = self.output[stack] if isinstance(self.output, nn.ModuleDict) else self.output

        def last() -> Tensor:
            with self.frozen(stack):
                return self.backbone.finish(state)

        return output(self.side_steps(stack).finish(side), last).to(state.hidden.dtype), state

    def decode(self, batch: Batch, memory: LadderMemory) -> Tensor:
        return self.backbone.language_logits(self.last_hidden(batch, memory, self.last_stack)[0])

    def spoken(self, batch: Batch) -> tuple[Tensor, State]:
        """Vocabulary logits (B, T, V) of a language task, and the backbone's last state."""
        memory = None
        if self.form.writes:
            batch = with_decoder_inputs(self.backbone, batch)
            memory = self.encode(batch)
        hidden, state = self.last_hidden(batch, memory, self.last_stack)
        return self.backbone.language_logits(hidden), state

    def stack_features(self, batch: Batch, stack: str) -> Tensor:
        hidden, state = self.last_hidden(batch, None, stack)
        return self.backbone.pool(hidden, state)

    def language(self, batch: Batch) -> Tensor:
        return self.spoken(batch)[0]

    def new_cache(self) -> LadderCache:
        return LadderCache(self.backbone.new_cache(), self.side_steps(self.last_stack).new_cache())


def task_stacks(backbone: Backbone, task: Task) -> tuple[str, ...]:
    """The stacks that a task runs through: both of an encoder-decoder, both towers in retrieval, else the first one."""
    return find_form(task.form).stacks(backbone)


def outputs(backbone: Backbone, task: Task, make: Callable[[int], nn.Module]) -> nn.Module:
    """`make(width)` for the stack that the head reads; one for each tower where there are two."""
    form = find_form(task.form)
    made = {stack: make(backbone.width(stack)) for stack in form.read(backbone)}
    return nn.ModuleDict(made) if form.paired else made.popitem()[1]


def _as(tap: Tensor, module: nn.Module) -> Tensor:
    """The tap in the precision of the map's weights (the frozen part may be stored in a narrower one)."""
    weight = next(module.parameters(), None)
    return tap if weight is None else tap.to(weight.dtype)

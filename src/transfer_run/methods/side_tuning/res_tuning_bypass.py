"""Res-Tuning-Bypass: Res-Tuning (Jiang et al.; NeurIPS 2023, arXiv 2310.19859), the variant that leaves the backbone.

    b_0 = h_0        b_l = g T'_l(b_{l-1}) + (1 - g) T_l(h_l)        the norm and the head read b_L

A bypass of the backbone's width: two small tuners and a gate for every block, no blocks of its own. One frozen forward
serves the bypasses of many tasks. Nothing in a bypass attends, so that of an encoder would have no reader: text to text
has one beside the decoder alone (the paper has no such form).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.methods.side_tuning.ladder.ladder import (
    Identities,
    Ladder,
    LadderMemory,
    LadderTuning,
    MemoryMode,
    task_stacks,
)
from transfer_run.methods.side_tuning.ladder.mixing import LearnedGates
from transfer_run.task import Task


class Tuner(nn.Module):
    """x + up(gelu(down(x))), D -> width -> D; starts as the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        change: Tensor = self.up(F.gelu(self.down(hidden)))
        return hidden + change


class Tuners(Identities):
    """The steps T' of the bypass: a tuner for every block."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__(list(range(depth)))
        self.tuners = nn.ModuleList(Tuner(channels, width) for _ in self.kept)

    def run(self, side: State, index: int) -> Tensor:
        hidden: Tensor = self.tuners[index](side.hidden)
        return hidden


class TakeSide(nn.Module):
    def forward(self, side: Tensor, last: object) -> Tensor:
        return side


class ResTuningBypass(LadderTuning):
    """Res-Tuning-Bypass.

    Args:
        tuner_width: inner width of the tuners.
        gate_init: alpha in g = sigmoid(alpha), the bypass's share; 0: one half.
        backbone_dropout: the frozen model's dropout is active in training.
        memory_mode: `official` leaves what is kept for backward to autograd. Equal numbers.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, tuner_width: int = 16, gate_init: float = 0.0,
        backbone_dropout: bool = False, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        def ladder(stack: str) -> Ladder:
            width, depth = backbone.width(stack), backbone.depth(stack)
            maps = {index: Tuner(width, tuner_width) for index in range(depth)}
            gates = LearnedGates(depth, init=gate_init, temperature=1.0, lean=memory_mode == "efficient")
            return Ladder(nn.Identity(), maps, gates, Tuners(width, tuner_width, depth), fuse_after=True)

        with torch.device(next(backbone.parameters()).device):
            stacks = task_stacks(backbone, task)
            ladders = {stack: ladder(stack) for stack in (stacks[1:] if "decoder" in stacks[1:] else stacks)}
        super().__init__(
            backbone, task, ladders, TakeSide(), backbone_dropout=backbone_dropout, memory_mode=memory_mode
        )

    def begin(self, ladder: Ladder, tap_zero: Tensor, state: State, batch: Batch) -> State:
        side = super().begin(ladder, tap_zero, state, batch)
        return side.with_hidden(side.hidden.to(next(ladder.parameters()).dtype))

    def encode(self, batch: Batch) -> LadderMemory:
        with self.frozen("decoder"):
            finished = super(LadderTuning, self).encode(batch)
        return LadderMemory(finished, finished)

    def last_hidden(self, batch: Batch, memory: LadderMemory | None, stack: str) -> tuple[Tensor, State]:
        """The bypass in the place of the backbone's stream: what follows the last block is the backbone's own."""
        side, state = self.climb(batch, stack, memory)
        return self.backbone.finish(state.with_hidden(side.hidden.to(state.hidden.dtype))), state

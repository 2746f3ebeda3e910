"""QST: Quantized Side Tuning (Zhang et al.; ACL 2024, arXiv 2401.07159).

    s_l = block_l(z_l s_{l-1} + (1 - z_l) down_l(h_l))          z_l = sigmoid(gate), width D/r
    h   = a h_L + (1 - a) up(s_L)                               a per channel, then the frozen language head

LST for large language models: the ladders are low-rank maps, the output leaves the backbone's own answer in. The
paper's 4-bit backbone is `backbone.load=nf4`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone
from transfer_run.methods.side_tuning.ladder.ladder import Ladder, LadderTuning, MemoryMode, outputs, task_stacks
from transfer_run.methods.side_tuning.ladder.mixing import LearnedGates
from transfer_run.methods.side_tuning.ladder.slim_blocks import side_blocks
from transfer_run.task import Task

Down = Literal["low_rank", "adapter", "max_pool", "avg_pool"]


class PoolDown(nn.Module):
    """(B, T, D) -> (B, T, d'): the maximum or mean of neighbouring channels; nothing to train."""

    def __init__(self, outputs: int, *, largest: bool) -> None:
        super().__init__()
        self.outputs, self.largest = outputs, largest

    def forward(self, hidden: Tensor) -> Tensor:
        pool = F.adaptive_max_pool1d if self.largest else F.adaptive_avg_pool1d
        return pool(hidden.float(), self.outputs)


def down(kind: Down, inputs: int, outputs: int, rank: int) -> nn.Module:
    """A ladder's map D -> D/r; the adapter has a SiLU between its two matrices."""
    if kind in ("max_pool", "avg_pool"):
        return PoolDown(outputs, largest=kind == "max_pool")
    narrow, wide = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    return nn.Sequential(narrow, nn.SiLU(), wide) if kind == "adapter" else nn.Sequential(narrow, wide)


class Convex(nn.Module):
    """a last + (1 - a) up(side), a for every channel.

    Args:
        released: a = sigmoid(1) = 0.73 at the start as in the code; else a = 1, the backbone itself as in the paper.
    """

    def __init__(self, inputs: int, outputs: int, *, released: bool) -> None:
        super().__init__()
        self.up = nn.Linear(inputs, outputs)
        self.share = nn.Parameter(torch.ones(outputs))
        self.released = released

    def forward(self, side: Tensor, last: Callable[[], Tensor]) -> Tensor:
        share = torch.sigmoid(self.share) if self.released else self.share
        return share * last() + (1 - share) * self.up(side)


class QST(LadderTuning):
    """Quantized Side Tuning.

    Args:
        reduction_factor: r; every width of the side blocks is the backbone's divided by it, the heads stay.
        ladder: map from the backbone's to the side's width.
        rank: of `low_rank` and `adapter` ladders.
        fidelity: `released` passes the output's a through a sigmoid, so training does not start at the backbone;
            `paper` starts there exactly.
        backbone_dropout: the frozen model's dropout is active in training.
        memory_mode: `official` leaves to autograd what is kept for backward, the side blocks' attention matrices too.
            Equal numbers.

    Raises:
        UserError: a reduction factor that leaves no valid width.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, reduction_factor: int = 16, ladder: Down = "low_rank",
        rank: int = 16, fidelity: Literal["released", "paper"] = "released", backbone_dropout: bool = False,
        memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        lean = memory_mode == "efficient"

        def built(stack: str) -> Ladder:
            width = backbone.width(stack)
            narrow = width // reduction_factor
            layers = list(range(backbone.depth(stack)))
            steps = side_blocks(backbone, stack, layers, reduction_factor, eager=not lean)
            maps = {index: down(ladder, width, narrow, rank) for index in layers}
            gates = LearnedGates(len(layers), temperature=1.0, lean=lean)
            return Ladder(down(ladder, width, narrow, rank), maps, gates, steps)

        with torch.device(next(backbone.parameters()).device):
            ladders = {stack: built(stack) for stack in task_stacks(backbone, task)}
            output = outputs(
                backbone, task, lambda wide: Convex(wide // reduction_factor, wide, released=fidelity == "released")
            )
        super().__init__(
            backbone, task, ladders, output, reads_last=True, backbone_dropout=backbone_dropout,
            memory_mode=memory_mode,
        )  # fmt: skip

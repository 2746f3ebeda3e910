"""DTL: Disentangled Transfer Learning for Visual Recognition (Fu, Zhu, Wu; AAAI 2024, arXiv 2312.07856).

    h_0 ─ block 0 ─▶ h_1 ─ ... ─ block m ─▶ + ─▶ h_{m+1} ─ block m+1 ─▶ + ─▶ ...  ─ norm ─ head
     A_0B_0▼          A_1B_1▼               ▲ swish(s)                  ▲
    s:     └──── + ────▶ + ─────── ... ─────┴───────────────────────────┴

One state of the backbone's width gathers low-rank maps of every block's input and is added to the stream after the
late blocks, so backward visits those behind the first late one and no other. DTL+ sends what is added through one
depthwise convolution over the patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.ladder.ladder import Identities, Ladder, LadderTuning, MemoryMode
from transfer_run.methods.side_tuning.ladder.mixing import Sum
from transfer_run.task import Task


class LowRank(nn.Module):
    """h A B: (B, T, D) -> (B, T, D); A Kaiming-uniform, B zero, so the side state starts at zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.zeros(rank, width))
        nn.init.kaiming_uniform_(self.a.T, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.a @ self.b


class AddSide(nn.Module):
    """hidden + swish(s) from block `late` on, swish(s) = s sigmoid(beta s).

    Args:
        special: tokens before the patches, which the convolution leaves alone.
        kernel: side of DTL+'s depthwise convolution; None: no convolution.
        lean: keep one tensor of the swish for backward instead of two.
    """

    def __init__(
        self, late: int, beta: float, width: int, grid: tuple[int, int], special: int, kernel: int | None, *,
        lean: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.late, self.beta, self.grid, self.special, self.lean = late, beta, grid, special, lean
        self.convolution: nn.Module | None = None
        if kernel is not None:
            self.convolution = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)

    def forward(self, index: int, hidden: Tensor, side: Tensor) -> Tensor:
        if index < self.late:
            return hidden
        added = F.silu(self.beta * side) / self.beta if self.lean else side * torch.sigmoid(self.beta * side)
        if self.convolution is not None:
            tokens, patches = added[:, : self.special], added[:, self.special :]
            image = patches.transpose(1, 2).unflatten(2, self.grid)
            added = torch.cat([tokens, self.convolution(image).flatten(2).transpose(1, 2)], dim=1)
        return hidden + added


class TakeLast(nn.Module):
    """The output of a method that works inside the backbone's stream: its own last state."""

    def forward(self, side: Tensor, last: Callable[[], Tensor]) -> Tensor:
        return last()


class DTL(LadderTuning):
    """Disentangled Transfer Learning.

    Args:
        rank: of A_l B_l.
        late: first block whose output the side state is added to; None: half of the depth (6 of 12).
        beta: of the swish.
        plus: DTL+.
        kernel: side of DTL+'s convolution, odd (3 for ViT in the paper).
        pooling: `patches`: norm of the patches' mean, as in the paper's code; `backbone`: the backbone's own.
        backbone_dropout: the frozen model's dropout is active in training.
        memory_mode: `official` keeps both factors of the swish for backward, as released. Equal numbers.

    Raises:
        UserError: a late block that does not exist, or an even kernel.
    """

    needs_backbone_gradient = True  # of the late blocks

    def __init__(
        self, backbone: Backbone, task: Task, *, rank: int = 2, late: int | None = None, beta: float = 100.0,
        plus: bool = False, kernel: int = 3, pooling: Literal["patches", "backbone"] = "patches",
        backbone_dropout: bool = False, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        (stack,) = backbone.stacks
        width, depth = backbone.width(stack), backbone.depth(stack)
        late = depth // 2 if late is None else late
        refuse_impossible(backbone, late, kernel)
        with torch.device(next(backbone.parameters()).device):
            add = AddSide(late, beta, width, *patches_of(backbone), kernel if plus else None,
                          lean=memory_mode == "efficient")  # fmt: skip
            maps = {index: LowRank(width, rank) for index in range(depth - 1)}  # reads the input of block index + 1
            ladder = Ladder(LowRank(width, rank), maps, Sum(), Identities(list(maps)), feedback=add)
        super().__init__(
            backbone, task, {stack: ladder}, TakeLast(), reads_last=True, backbone_dropout=backbone_dropout,
            memory_mode=memory_mode,
        )  # fmt: skip
        self.pooling = pooling

    def features(self, batch: Batch) -> Tensor:
        if self.pooling == "backbone":
            return super().features(batch)
        _, state = self.climb(batch, self.last_stack)
        patches = state.hidden[:, self.backbone.special_tokens(state) :]
        norm = self.backbone.final_norm(self.last_stack)
        mean = patches.mean(1)
        return mean if norm is None else norm(mean)


def patches_of(backbone: Backbone) -> tuple[tuple[int, int], int]:
    """Height and width of the grid of patches, and how many tokens stand before them."""
    model = backbone.model
    if backbone.family == "clip":
        config = model.config.vision_config
        return (config.image_size // config.patch_size,) * 2, 1
    return tuple(model.patch_embed.grid_size), model.num_prefix_tokens


def refuse_impossible(backbone: Backbone, late: int, kernel: int) -> None:
    """Raises UserError for a tower without patches, a late block that does not exist, and a convolution that would
    change the grid."""
    if backbone.stacks != ("image",):
        raise UserError(
            f"DTL works on the patches of an image, and {backbone.config.get('name')} is here for its text tower.",
            where="backbone.tower",
            remedy="backbone.tower=image with a dataset of images",
        )
    depth = backbone.depth("image")
    if not 0 <= late < depth:
        raise UserError(
            f"The backbone has blocks 0 to {depth - 1}; the side state cannot be added from block {late} on.",
            where="method.late",
            remedy="name a block that exists, or null for half of the depth",
        )
    if kernel % 2 == 0:
        raise UserError(
            f"A convolution of side {kernel} has no middle.", where="method.kernel", remedy="choose an odd side"
        )

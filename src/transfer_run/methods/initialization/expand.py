"""Expand: a network of another depth from a finished one, without a step.

    line     block i of L' is W(i / L') = B + (i / L') A    of a finished run of method=tleg
    first    the first L' blocks                            of any finished run on an ordinary network
    last     the last L' blocks
    spread   L' blocks at equal distances, the first one among them

Everything outside the blocks is the finished run's. Xia et al., "Transformer as Linear Expansion of Learngene", AAAI
2024, arXiv 2312.05614, section 3, makes descendants so; the other three are the plain ways to compare it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.initialization.line.blocks import Line
from transfer_run.task import Task

REMEDY = "a run on the same backbone with the same settings but for its depth"


class Expand(Method):
    """The run's backbone, of whatever depth it is composed with, filled from `sources.model`; the head, too, where the
    label set is the same.

    Args:
        blocks: where they come from.
    """

    trains = False
    ships = "all"
    needs_backbone_gradient = False

    def __init__(
        self, backbone: Backbone, task: Task, *, blocks: Literal["line", "first", "last", "spread"] = "line"
    ) -> None:
        super().__init__(backbone, task, backbone_dropout=False)
        self.requires_grad_(False)
        self.chosen = blocks
        self.results: dict[str, Any] = {}

    def prepare(self, context: Context) -> None:
        source = context.load_source("model")
        stack = self.backbone.stacks[0]
        own, line = self.backbone.blocks(stack), getattr(source, "line", None)
        if self.chosen == "line":
            if not isinstance(line, Line):
                raise UserError(
                    "That run has no line over depth: its blocks are any.",
                    where="sources.model, method.blocks=line",
                    remedy="a run of method=tleg, or method.blocks=first, last or spread",
                )
            line.write(own)
        else:
            self._copy(source, own)
        self._fill_rest(source)
        kept = self.keeps_head(source.task)
        if kept:
            self.backbone.head.load_state_dict(source.backbone.head.state_dict())
        names = ", ".join(source.task.label_names[:6]) or f"{source.task.num_labels} outputs"
        context.log(f"the head of the finished run goes on ({names})" if kept else f"a new head: that run has {names}")
        self.results = {"depth": len(own), "head_taken": kept, "stored": sum(p.numel() for p in source.parameters()),
                        "parameters": sum(p.numel() for p in self.parameters())}  # fmt: skip
        self.eval()

    def rehearse(self, batch: Batch) -> Sequence[str]:
        return ["the finished run whose weights are read"]

    @torch.no_grad()
    def _copy(self, source: Method, own: Sequence[nn.Module]) -> None:
        """Blocks of the finished run, folded where it trained beside them."""
        source.fold()
        theirs = source.backbone.blocks(source.backbone.stacks[0])
        for number, place in enumerate(places(self.chosen, len(own), len(theirs))):
            fill(own[number].state_dict(), theirs[place].state_dict())

    def _fill_rest(self, source: Method) -> None:
        """What lies outside the blocks, by name; the last norm wherever the architecture has it, before or behind the
        mean over patches (as released, descendants have it behind: not the same function)."""
        names = [_outside(each.backbone) for each in (self, source)]
        norms = [each.backbone.final_norm(each.backbone.stacks[0]) for each in (self, source)]
        if None not in norms:
            mine, other = (norm.state_dict() for norm in norms)  # type: ignore[union-attr]
            fill(mine, other)
        fill(*names)

    def conclude(self, context: Context) -> dict[str, Any]:
        """Depth, parameters, and numbers stored by the finished run, which serves every depth."""
        return self.results


def places(chosen: str, count: int, depth: int) -> list[int]:
    """Which of `depth` blocks the `count` of a shallower network are.

    Raises:
        UserError: there are not so many.
    """
    if count > depth:
        raise UserError(
            f"The finished run has {depth} blocks, and {count} are asked for.",
            where=f"method.blocks={chosen}, backbone.architecture",
            remedy=f"{depth} blocks at most; only method.blocks=line makes networks deeper",
        )
    if chosen == "spread":
        return [number * depth // count for number in range(count)]
    return list(range(count)) if chosen == "first" else list(range(depth - count, depth))


def _outside(backbone: Backbone) -> dict[str, Tensor]:
    """Tensors of the model that are in no block and not of its last norm."""
    stack = backbone.stacks[0]
    within = {id(part) for block in backbone.blocks(stack) for part in block.modules()}
    norm = backbone.final_norm(stack)
    within |= {id(norm)} if norm is not None else set()
    return {
        f"{path}.{name}": tensor
        for path, module in backbone.model.named_modules()
        if id(module) not in within
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


@torch.no_grad()
def fill(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Copy tensors of the same names.

    Raises:
        UserError: one lacks what the other has, or has it in another shape.
    """
    for name in sorted(own.keys() | theirs.keys()):
        if name not in own or name not in theirs or own[name].shape != theirs[name].shape:
            sizes = [tuple(each[name].shape) if name in each else "none" for each in (theirs, own)]
            raise UserError(
                f"The finished run's network differs in more than its depth: {name} is {sizes[0]} there, {sizes[1]} "
                "here.",
                where="sources.model, backbone.architecture",
                remedy=REMEDY,
            )
        own[name].copy_(theirs[name])

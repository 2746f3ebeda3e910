"""Partial fine-tuning: the last blocks, the norm after them and the head are trained."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError, nearest_names
from transfer_run.methods.base import Method
from transfer_run.task import Task


class Partial(Method):
    """The last `blocks` blocks of each chosen stack are trained, with what follows them and the head.

    What follows is the final norm, and the language head where it has weights of its own and words are asked for.

    Backward stops at the first trained block: the blocks before it keep no activations. Batch norms of frozen blocks
    keep their statistics.

    Args:
        blocks: how many blocks, counted from the end.
        stacks: which stacks; None: the one whose output the head reads (an encoder-decoder's decoder), in retrieval
            both towers.

    Raises:
        UserError: no such stack, or fewer blocks than asked for.
    """

    def __init__(self, backbone: Backbone, task: Task, *, blocks: int = 1, stacks: Sequence[str] | None = None) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        for stack in stacks or self.form.read(backbone):
            if stack not in backbone.stacks:
                raise UserError(
                    f"{backbone.config.get('name')} has no stack {stack!r}.",
                    where="method.stacks",
                    nearest=nearest_names(stack, backbone.stacks) or backbone.stacks,
                )
            if blocks > backbone.depth(stack):
                raise UserError(
                    f"The {stack} of {backbone.config.get('name')} has {backbone.depth(stack)} blocks, not {blocks}.",
                    where="method.blocks",
                    remedy=f"choose at most {backbone.depth(stack)}, or method=full",
                )
            for module in [*list(backbone.blocks(stack))[-blocks:], *backbone.finish_modules(stack)]:
                module.requires_grad_(True)
        self.freeze_idle()

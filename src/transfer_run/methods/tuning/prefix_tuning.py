"""Prefix tuning: rows before the keys and values of every attention are trained. arXiv 2101.00190, 2110.04366.

Encoder self-attention, decoder self-attention and cross-attention each have their own prefix, from an MLP of their
own while training; afterwards only the rows are kept. Text positions do not shift.
"""

from __future__ import annotations

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.methods.base import Method
from transfer_run.methods.inside.prefix import Composition
from transfer_run.methods.inside.prefixed import attach_prefixes, keep_prefixes_visible
from transfer_run.methods.inside.targets import Layers
from transfer_run.task import Task


class PrefixTuning(Method):
    """Prefixes of all attentions are trained, and the head.

    Args:
        length: l, rows before the keys and values of each attention.
        hidden: width of the MLPs that the rows come from in training (they are not shipped); None: free rows.
        composition: `concat`; `gated` (equal to it, slower); `ungated`, which adds the prefix's own attention as it is.
        cross_attention: prefixes in cross-attention as well.
        layers: blocks with a prefix, by stack; a stack that is not named: all.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        length: int = 30,
        hidden: int | None = 800,
        composition: Composition = "concat",
        cross_attention: bool = True,
        layers: Layers | None = None,
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        self.prefixes = attach_prefixes(backbone, length, hidden, composition, cross_attention, layers)

    def embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        keep_prefixes_visible(self.backbone)
        return super().embed(batch, stack, memory)

    def settle(self) -> None:
        self.prefixes.settle()

    def counted_parameters(self) -> int:
        made = sum(p.numel() for p in self.prefixes.parameters())
        return super().counted_parameters() - made + self.prefixes.counted()

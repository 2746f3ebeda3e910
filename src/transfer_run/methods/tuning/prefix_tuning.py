"""Prefix tuning: rows before the keys and values of every attention are trained. arXiv 2101.00190, 2110.04366.

Encoder self-attention, decoder self-attention and cross-attention each have their own prefix, from an MLP of their
own while training; afterwards only the rows are kept. Text positions do not shift.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.prefix import (
    Composition,
    LayerPrefix,
    PrefixAttention,
    Prefixes,
    make_prefixes,
    switch_attention,
)
from transfer_run.methods.inside.targets import Layers, find_targets
from transfer_run.task import Task


def attach_prefixes(
    backbone: Backbone,
    length: int,
    hidden: int | None,
    composition: Composition = "concat",
    cross_attention: bool = True,
    layers: Layers | None = None,
) -> Prefixes:
    """Give every chosen attention a prefix; returns the module that makes the rows.

    Args:
        hidden: width of the MLPs that the rows come from; None: free rows.

    Raises:
        UserError: the model's attention cannot take a prefix.
    """
    found = find_targets(backbone, ("k",), cross_attention=cross_attention, layers=layers)
    prefixes, rows = make_prefixes(backbone, found, length, hidden)
    for target, own in zip(found, rows, strict=True):
        _hang(backbone, target.path.rpartition(".")[0], LayerPrefix(own, composition))
    return prefixes


def _hang(backbone: Backbone, path: str, prefix: LayerPrefix) -> None:
    """Put the prefix on the attention module at `path`."""
    attention = backbone.get_submodule(path)
    if isinstance(backbone.model, PreTrainedModel):
        attention.prefix = prefix  # type: ignore[assignment]
        if hasattr(attention, "config") and switch_attention(backbone.model):
            return
    else:
        from timm.layers import Attention

        if isinstance(attention, Attention) and attention.gate is None:
            backbone.set_submodule(path, PrefixAttention(attention, prefix))
            return
    raise UserError(
        f"The attention of {backbone.config.get('name')} ({type(attention).__name__}) cannot take a prefix.",
        where="method, backbone",
        remedy="choose another backbone, or method=prompt_tuning",
    )


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


def keep_prefixes_visible(backbone: Backbone) -> None:
    """Whoever changed the attention's kernel since (`eager` for a paper's memory) did not mean to lose the prefix."""
    if isinstance(backbone.model, PreTrainedModel):
        switch_attention(backbone.model)

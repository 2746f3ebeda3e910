"""A backbone whose attentions have a prefix: the rows are made, and hung on each attention."""

from __future__ import annotations

from transformers import PreTrainedModel

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.inside.prefix import (
    Composition,
    LayerPrefix,
    PrefixAttention,
    Prefixes,
    make_prefixes,
    switch_attention,
)
from transfer_run.methods.inside.targets import Layers, find_targets


def attach_prefixes(
    backbone: Backbone,
    length: int,
    hidden: int | None,
    composition: Composition = "concat",
    cross_attention: bool = True,
    layers: Layers | None = None,
    dropout: float = 0.0,
) -> Prefixes:
    """Give every chosen attention a prefix; returns the module that makes the rows.

    Args:
        hidden: width of the MLPs that the rows come from; None: free rows.
        dropout: of single entries of the rows, drawn anew for every example.

    Raises:
        UserError: the model's attention cannot take a prefix.
    """
    found = find_targets(backbone, ("k",), cross_attention=cross_attention, layers=layers)
    prefixes, rows = make_prefixes(backbone, found, length, hidden)
    for target, own in zip(found, rows, strict=True):
        _hang(backbone, target.path.rpartition(".")[0], LayerPrefix(own, composition, dropout))
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


def keep_prefixes_visible(backbone: Backbone) -> None:
    """Whoever changed the attention's kernel since (`eager` for a paper's memory) did not mean to lose the prefix."""
    if isinstance(backbone.model, PreTrainedModel):
        switch_attention(backbone.model)

"""Do the adapters of a source run fit? Asked before any source is trained, as far as shapes and settings tell."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.bottleneck import Bottleneck
from transfer_run.methods.task_transfer.combining.adapters import SourceAdapters

STAGE_ONE = "method=adapter method.placement=pfeiffer method.activation=relu method.train_norms=false"
"""Words of a run that trains such adapters."""


def adapters_of(
    name: str, source: Method, wanted: Mapping[str, SourceAdapters], activation: str
) -> Mapping[str, Bottleneck]:
    """The source's adapters by their places.

    Args:
        name: of the source, for messages.
        wanted: where adapters of which shape are needed.

    Raises:
        UserError: the source has none, or others.
    """
    units, unit = getattr(source, "adapters", None), getattr(source, "unit", {})
    if not isinstance(units, nn.ModuleDict) or not all(isinstance(each, Bottleneck) for each in units.values()):
        raise _refused(name, "has no adapters", f"name a run of {STAGE_ONE}")
    found: dict[str, Bottleneck] = {str(place): each for place, each in units.items()}  # type: ignore[misc]
    if getattr(source, "placement", "") != "pfeiffer" or set(found) != set(wanted):
        raise _refused(name, "does not have one adapter behind the feed-forward of every block", f"use {STAGE_ONE}")
    if getattr(source, "train_norms", False):
        raise _refused(name, "trained the backbone's norms, too, which its target cannot", "method.train_norms=false")
    if unit["activation"] != activation:
        raise _refused(
            name,
            f"has adapters with the activation {unit['activation']}, and method.activation={activation}",
            f"method.activation={unit['activation']} for all of them, or method.activation={activation} in its words",
        )
    for place, each in found.items():
        if each.norm_in is not None or each.norm_out is not None:
            raise _refused(name, "has adapters with norms of their own", "method.layernorm=none in its words")
        mine, theirs = wanted[place].bottleneck, len(each.down.weight)
        if mine != theirs:
            raise _refused(
                name,
                f"has adapters of {theirs} channels, and this run wants {mine}",
                f"method.bottleneck={theirs} here, or method.bottleneck={mine} in its words",
            )
    return found


def refuse_another_start(name: str, source: Backbone, own: Backbone) -> None:
    """Adapters work on the very weights that they were trained in.

    Raises:
        UserError: the source's backbone holds other values. On the meta device nothing is compared.
    """
    theirs = dict(source.model.named_parameters())
    for path, weight in own.model.named_parameters():
        other = theirs.get(path)
        same = other is not None and other.shape == weight.shape
        if not same or not (weight.is_meta or other.is_meta or torch.equal(weight, other.to(weight.device))):  # type: ignore[union-attr]
            raise _refused(
                name, f"stands on other weights of the backbone ({path})", "give all runs the same backbone.weights"
            )


def _refused(name: str, what: str, remedy: str) -> UserError:
    return UserError(f"The source {name!r} {what}.", where=f"sources.{name}", remedy=remedy)

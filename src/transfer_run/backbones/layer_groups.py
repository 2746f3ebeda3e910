"""A backbone as an ordered list of stages with weights, each of which can be copied, frozen and re-initialised.

    embedding | STACK.0 | STACK.1 | ... | STACK.finish | head

"How transferable are features" (arXiv 1411.1792) cuts a network between two stages: those before the cut come from a
trained network and may be frozen, those after it start anew. A stage is the names of its parameters and buffers, as
in `backbone.state_dict()`; no tensor belongs to two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError, nearest_names

EMBEDDING, HEAD = "embedding", "head"


def stages(backbone: Backbone) -> dict[str, list[str]]:
    """Names of the stages in order, each with its tensors; the embedding holds all that no later stage owns."""
    paths = {id(module): name for name, module in backbone.named_modules()}
    owners: list[tuple[str, str]] = []
    for stack in backbone.stacks:
        owners += [(f"{paths[id(block)]}.", f"{stack}.{i}") for i, block in enumerate(backbone.blocks(stack))]
        owners += [(f"{paths[id(module)]}.", f"{stack}.finish") for module in backbone.finish_modules(stack)]
    owners.append(("head.", HEAD))
    found: dict[str, list[str]] = {stage: [] for stage in (EMBEDDING, *(stage for _, stage in owners))}
    for name in backbone.state_dict():
        owner = next((stage for prefix, stage in owners if name.startswith(prefix)), EMBEDDING)
        found[owner].append(name)
    return {stage: names for stage, names in found.items() if names}


def copy_stages(target: Backbone, source: Backbone | Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Copy parameters and buffers of the named stages from `source`: one of the same architecture, or its tensors.

    Raises:
        UserError: a name that is no stage.
    """
    tensors = source.state_dict() if isinstance(source, Backbone) else source
    own = target.state_dict()
    with torch.no_grad():
        for name in _tensors(target, names):
            own[name].copy_(tensors[name])


def freeze_stages(backbone: Backbone, names: Iterable[str]) -> None:
    """No gradient for the named stages; their batch norms keep their statistics, their dropout stays as it is."""
    frozen = set(_tensors(backbone, names))
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(False)
    backbone.train(backbone.training)


def reinitialize(backbone: Backbone, names: Iterable[str], seed: int) -> None:
    """Give the named stages the fresh weights that a new model of this architecture would have under `seed`.

    The library's own initialiser is used for each, because a whole new model is built once and copied from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(backbone).from_architecture(backbone.config)
        layers = [module for module in backbone.head.modules() if isinstance(module, torch.nn.Linear)]
        if layers:
            fresh.head = fresh.new_head(layers[-1].out_features)
        if (
            layers and fresh.head.state_dict().keys() != backbone.head.state_dict().keys()
        ):  # a linear head of somebody else's
            fresh.head = torch.nn.Linear(layers[0].in_features, layers[0].out_features)
    copy_stages(backbone, fresh, names)


def _tensors(backbone: Backbone, names: Iterable[str]) -> list[str]:
    known = stages(backbone)
    wanted: list[str] = []
    for name in names:
        if name not in known:
            raise UserError(
                f"The backbone has no stage {name!r}.", nearest=nearest_names(name, known) or known, where="stages"
            )
        wanted += known[name]
    return wanted

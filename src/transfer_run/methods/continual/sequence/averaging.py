"""Weights between weights: the running mean of a task's iterates (WE), and mixtures of two models (WiSE-FT)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from transfer_run.backbones.base import Backbone


def copy_of(backbone: Backbone) -> Backbone:
    """The backbone's weights as they are now, in a module of their own."""
    return copy.deepcopy(backbone)


@torch.no_grad()
def set_weights(target: nn.Module, source: nn.Module) -> None:
    """Give `target` the weights of `source`, parameter by parameter."""
    for weight, other in zip(target.parameters(), source.parameters(), strict=True):
        weight.copy_(other)


@torch.no_grad()
def include(average: nn.Module, model: nn.Module, number: int) -> None:
    """Take the `number`-th snapshot (1, 2, ...) into a mean that holds the start weights and those before it.

    average <- (number * average + model) / (number + 1): all of them count the same (section 3.3, WE).
    """
    mix(average, model, number / (number + 1))


@torch.no_grad()
def mix(target: nn.Module, other: nn.Module, share: float) -> None:
    """target <- share * target + (1 - share) * other (Wortsman et al. 2022, WiSE-FT)."""
    for weight, second in zip(target.parameters(), other.parameters(), strict=True):
        weight.lerp_(second.to(weight.dtype), 1 - share)

"""Weights between weights: running means of models, and mixtures of two. Running statistics belong to the weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_of(model: M) -> M:
    """The model's weights as they are now, in a module of their own."""
    return copy.deepcopy(model)


@torch.no_grad()
def set_weights(target: nn.Module, source: nn.Module) -> None:
    """Give `target` the weights and buffers of `source`, one by one."""
    for weight, other in zip(target.parameters(), source.parameters(), strict=True):
        weight.copy_(other)
    for buffer, given in zip(target.buffers(), source.buffers(), strict=True):
        buffer.copy_(given)


@torch.no_grad()
def include(average: nn.Module, model: nn.Module, number: int) -> None:
    """Take the `number`-th snapshot (1, 2, ...) into a mean that holds the start weights and those before it.

    average <- (number * average + model) / (number + 1): all of them count the same (Zheng et al. 2023, section 3.3).
    """
    mix(average, model, number / (number + 1))


@torch.no_grad()
def mix(target: nn.Module, other: nn.Module, share: float) -> None:
    """target <- share * target + (1 - share) * other (Wortsman et al. 2022, WiSE-FT); whole numbers are the other's."""
    for weight, second in zip(target.parameters(), other.parameters(), strict=True):
        weight.lerp_(second.to(weight.dtype), 1 - share)
    for buffer, given in zip(target.buffers(), other.buffers(), strict=True):
        if buffer.is_floating_point():
            buffer.lerp_(given.to(buffer.dtype), 1 - share)
        else:
            buffer.copy_(given)

"""Tensors that stay in float32 when a model goes to a half type (`backbone.load`, `hardware.precision=bf16-true`), and
what is cast on the way in and out of such a model.

Rotary frequencies: bfloat16 has 8 bits, so an angle of some hundred radians would be off by one and more, and tokens of
long texts would stand elsewhere. Batch norms, whole: running statistics that move by less than 1/256 of themselves
would stand still, and CUDA's kernels want weights and statistics of one type. Both answer in the type that they read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transfer_run.task import Batch

Kept = tuple[nn.Module, str, Tensor]
"""A module, a name of its parameters or buffers, and the value."""


def precise(model: nn.Module) -> Iterator[Kept]:
    """All that a half type would spoil, with the present values."""
    for module in model.modules():
        named = type(module).__name__.lower()
        if isinstance(module, _BatchNorm):
            yield from _floating(module, module._parameters.items())
        if isinstance(module, _BatchNorm) or "rotary" in named or "rope" in named:
            yield from _floating(module, module._buffers.items())


def _floating(module: nn.Module, named: Iterable[tuple[str, Tensor | None]]) -> Iterator[Kept]:
    for name, tensor in named:
        if tensor is not None and tensor.is_floating_point():
            yield module, name, tensor.data


@torch.no_grad()
def restore(kept: Iterable[Kept]) -> None:
    """Undo what narrowed them; where they are now they stay."""
    for module, name, before in kept:
        now = getattr(module, name)
        if now.dtype.itemsize < before.dtype.itemsize:
            now.data = before.to(now.device)


def in_half(batch: Batch) -> Batch:
    """Images in bfloat16; everything else as it is."""
    return {name: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in batch.items()}


def as_head(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of the task's head: features come in the backbone's type."""
    weight = next(head.parameters(), None)
    wide = lambda x: x.to(weight.dtype) if weight is not None and isinstance(x, Tensor) else x  # noqa: E731
    return tuple(wide(value) for value in args)

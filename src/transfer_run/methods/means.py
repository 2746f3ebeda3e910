"""What a loss's mean divides by where several processes share a batch: the same for all of them.

    process 0   the losses of 3 labels, summed ─┐   each sum is divided by 4, the mean of 3 and 5;
    process 1   the losses of 5 labels, summed ─┘   the mean of both is all losses by all 8 labels

Rows that are padded, have no label or count by the weight of their class are not as many on every process: means of
each one's own would give the labels of a poor process more weight, and another model than one device makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


@contextmanager
def of_all_processes(several: bool) -> Iterator[None]:
    """Within it all processes of a training take the same step together (`several`: there are more than one)."""
    token = _SHARED.set(several)
    try:
        yield
    finally:
        _SHARED.reset(token)


def is_shared() -> bool:
    """Are the means that are made now those of several processes?"""
    return _SHARED.get()


def divisor(amount: Tensor) -> Tensor:
    """What a sum over this process's labels is divided by: their amount (), or its mean over the processes; of nothing
    at all 1."""
    amount = amount.detach().float()
    if _SHARED.get():
        amount = amount.clone()
        dist.all_reduce(amount)
        amount = amount / dist.get_world_size()
    return torch.where(amount > 0, amount, 1.0)

"""A learning rate found by trying: it rises from step to step until the loss explodes (Smith 2017, arXiv 1506.01186).

rate_k = low * (high / low)^(k / (steps - 1)), one training step each
loss   smoothed (0.98, its start corrected); behind four times the best one nothing is read any more
rate   in the middle of the longest run of falling losses: its second third's beginning and half a third more
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transfer_run.backbones.base import Batch
from transfer_run.methods.work import Work

STEPS, LOW, HIGH = 100, 1e-7, 10.0
SMOOTH, EXPLODED = 0.98, 4.0


def rates(steps: int = STEPS) -> list[float]:
    """The rates that are tried, in order."""
    return [LOW * (HIGH / LOW) ** (step / (steps - 1)) for step in range(steps)]


def find_rate(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    batches: Callable[[int], Iterator[Batch]],
    optimizer: Optimizer,
    work: Work,
    *,
    rehearsed: bool = False,
) -> float:
    """The rate for `optimizer`, after which the model's weights are as before.

    Args:
        batches: number of the first step -> its batch and those that follow.
        rehearsed: tensors hold no values (a memory plan): nothing is read of the losses.
    """
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    seen, tried = torch.zeros(STEPS, dtype=torch.float64), rates()
    reading: list[Iterator[Batch]] = []

    def step(number: int) -> Tensor | None:
        if not rehearsed and exploded(smoothed(seen[:number].tolist())):
            return None
        if not reading:
            reading.append(batches(number))
        for group in optimizer.param_groups:
            group["lr"] = tried[number]
        optimizer.zero_grad()
        value = loss(next(reading[0]))
        value.backward()
        if rehearsed:
            optimizer.step()
            return None
        seen[number] = min(float(value.detach()), 1e30) if math.isfinite(float(value.detach())) else 1e30
        if not exploded(smoothed(seen[: number + 1].tolist())):
            optimizer.step()
        return None

    work.loop("learning rate finder", step, STEPS, {"model": model, "optimizer": optimizer, "seen": seen})
    optimizer.zero_grad()
    model.load_state_dict(before)
    return tried[0] if rehearsed else valley(tried, before_explosion(smoothed(seen.tolist())))


def smoothed(losses: Sequence[float]) -> list[float]:
    """The running mean of the losses that were seen (those behind the last one that is not 0 were not)."""
    out, mean = [], 0.0
    for number, loss in enumerate(losses):
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        out.append(mean / (1 - SMOOTH ** (number + 1)))
    return out


def exploded(losses: Sequence[float]) -> bool:
    """Is one of the smoothed losses more than four times the best one before it?"""
    return len(before_explosion(losses)) < len(losses)


def before_explosion(losses: Sequence[float]) -> list[float]:
    """The losses in front of the first that is more than four times the best one."""
    best = math.inf
    for number, loss in enumerate(losses):
        if loss > EXPLODED * best:
            return list(losses[:number])
        best = min(best, loss)
    return list(losses)


def valley(tried: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at the middle of the longest decreasing subsequence of the losses."""
    length = [1] * len(losses)
    end = 0
    for i in range(1, len(losses)):
        length[i] = 1 + max((length[j] for j in range(i) if losses[i] < losses[j]), default=0)
        end = i if length[i] > length[end] else end
    start = max(0, end - length[end])
    third = (end - start) / 3
    return tried[start + int(third) + int(third / 2)]

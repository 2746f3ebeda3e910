"""The learning rate of a sequence: a rise and a fall for every task, and a base rate of its own for some."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from transfer_run.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")


def warmup_steps(warmup: float, steps: int) -> int:
    """W, the steps of the rise: below 1 a share of a task's `steps`, from 1 on their number."""
    return round(warmup * steps) if warmup < 1 else int(warmup)


def task_factor(schedule: str, warmup: float, steps: int) -> Callable[[int], float]:
    """The factor at step k = 0 ... `steps` - 1 of a task: (k + 1) / W in the first W steps, then the fall to 0.

    With N = `steps` - 1 and the cosine: 0.5 (1 + cos(pi (k - W) / (N - W))), which is 0 at the last step (released
    code: N + 1 = 1001 steps, W = 100).

    Args:
        warmup: below 1 a share of the steps, from 1 on their number.

    Raises:
        UserError: a schedule that a task does not have.
    """
    if schedule not in SCHEDULES:
        raise UserError(
            f"A task of a sequence has no schedule {schedule!r}.",
            where=f"optimizer.schedule={schedule}",
            remedy=f"choose among {', '.join(SCHEDULES)}",
        )
    rise = warmup_steps(warmup, steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - 1 - rise))
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0 - done if schedule == "linear" else 1.0

    return factor


def sequence_factor(factor: Callable[[int], float], steps: int, rates: Sequence[float]) -> Callable[[int], float]:
    """`factor` anew for every task of `steps` steps, times the task's own share of the base rate."""
    return lambda step: factor(step % steps) * rates[min(step // steps, len(rates) - 1)]

"""The largest batch that fits a budget, found with few rehearsals."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from transfer_run.errors import UserError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_UNITS |= {"G": 10**9, "M": 10**6, "TIB": 2**40}
LARGEST_BATCH = 2**20
_LINES = 12  # points after which the search halves instead: the peak was no line


@dataclass(frozen=True)
class Budget:
    """Answer to "how large a batch fits?".

    Attributes:
        bytes: what may be used.
        batch_size: the largest batch that fits; 0 when not even one example does.
        peak: of that batch (of one example when none fits).
        next_peak: of a batch larger by one; None when no batch tried was too large.
    """

    bytes: int
    batch_size: int
    peak: int
    next_peak: int | None


def parse_budget(text: str) -> int:
    """Bytes of `24GB` (10^9 each), `24GiB` (2^30 each), `800MiB`, ...

    Raises:
        UserError: not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise UserError(
            f"{text!r} is not an amount of memory.",
            where="plan.budget",
            remedy="write a number and a unit: 24GB (10^9 bytes each), 24GiB (2^30), 800MiB",
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def largest_batch(peak_of: Callable[[int], int], budget: int, start: int) -> Budget:
    """The largest batch whose peak is within `budget`, with the peaks on both sides of the border measured.

    The peak grows nearly in proportion to the batch, so the straight line through the two measured points nearest to
    the border points at the answer; the search ends only between two measured neighbours.

    Args:
        peak_of: batch size -> bytes; must not fall.
        start: batch size to begin with.
    """
    known: dict[int, int] = {}
    low, high, guess = 0, LARGEST_BATCH + 1, start
    while high - low > 1:
        known[guess] = peak_of(guess)
        low, high = (guess, high) if known[guess] <= budget else (low, guess)
        if len(known) < 2:
            guess = 2 * start if low else max(1, start // 2)
        elif len(known) > _LINES:
            guess = (low + high) // 2
        else:
            guess = _on_the_line(known, budget)
        guess = min(high - 1, max(low + 1, guess))
    return Budget(budget, low, known[max(low, 1)], known.get(high))


def _on_the_line(known: dict[int, int], budget: int) -> int:
    """Where the line through the two points nearest to the border crosses the budget."""
    near = sorted(known, key=lambda batch: abs(known[batch] - budget))[:2]
    first, second = min(near), max(near)
    slope = (known[second] - known[first]) / (second - first)
    return first + int((budget - known[first]) / slope) if slope > 0 else 2 * second

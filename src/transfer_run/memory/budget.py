"""The largest batch that fits a budget, found with few rehearsals."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transfer_run.errors import UserError
from transfer_run.memory.cards import find_card

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_UNITS |= {"G": 10**9, "M": 10**6, "TIB": 2**40}
LARGEST_BATCH = 2**20
_LINES = 12  # points after which the search halves instead: the peak was no line


@dataclass(frozen=True)
class Room:
    """What a card's memory leaves for what PyTorch counts as allocated, which is what a plan predicts.

    Attributes:
        bytes: the whole: an amount that the user gave, or a card's total as its driver reports it.
        usable: what is left of it after the CUDA context and the allocator's cached blocks.
        words: how it was come to, for people.
    """

    bytes: int
    usable: int
    words: str


def room(plan: Mapping[str, Any], accelerator: str) -> Room | None:
    """The room that `plan.budget` or `plan.card` asks to fill; None where neither is set.

    `plan.context` is taken off once; of the rest the allocator holds `plan.cached` more than is allocated. On a CPU
    all of the budget can be allocated.

    Raises:
        UserError: no amount of memory, an unknown card, both at once, or a card for a CPU.
    """
    budget, name = plan["budget"], plan["card"]
    if not budget and not name:
        return None
    if name and (budget or accelerator == "cpu"):
        raise UserError(
            "plan.card says how much memory a GPU has." if budget else "plan.card is a GPU, and the plan is for a CPU.",
            where=f"plan.card={name}, " + (f"plan.budget={budget}" if budget else "hardware.accelerator=cpu"),
            remedy="leave one of the two out" if budget else "plan.budget=AMOUNT for a CPU, or leave hardware=cpu out",
        )
    card = find_card(name) if name else None
    whole = card.total if card else parse_budget(budget)
    context = parse_budget(plan["context"], "plan.context")
    if accelerator == "cpu":
        return Room(whole, whole, str(budget))
    what = f"{name} ({whole / 2**30:.2f} GiB, {card.source})" if card else f"{budget} ({whole / 2**30:.2f} GiB)"
    usable = max(0, int((whole - context) / (1 + plan["cached"])))
    beside = f"{plan['context']} for the CUDA context and {100 * plan['cached']:.0f} % over it for cached blocks"
    return Room(whole, usable, f"{what}, which leaves {usable / 2**30:.2f} GiB after {beside}")


@dataclass(frozen=True)
class Budget:
    """Answer to "how large a batch fits?".

    Attributes:
        bytes: what may be allocated.
        batch_size: the largest batch that fits; 0 when not even one example does.
        peak: of that batch (of one example when none fits).
        next_peak: of a batch larger by one; None when no batch tried was too large.
    """

    bytes: int
    batch_size: int
    peak: int
    next_peak: int | None


def parse_budget(text: str, where: str = "plan.budget") -> int:
    """Bytes of `24GB` (10^9 each), `24GiB` (2^30 each), `800MiB`, ...

    Raises:
        UserError: not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise UserError(
            f"{text!r} is not an amount of memory.",
            where=where,
            remedy="write a number and a unit: 24GB (10^9 bytes each), 24GiB (2^30), 800MiB",
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def largest_batch(peak_of: Callable[[int], int], budget: int, start: int, fixed: int = 0) -> Budget:
    """The largest batch whose peak is within `budget`, with the peaks on both sides of the border measured.

    The peak grows nearly in proportion to the batch, so a straight line through measured points on both sides of the
    border (before there are such: through the two nearest) points at the answer; the search ends only between two
    measured neighbours.

    Args:
        peak_of: batch size -> bytes; must not fall.
        start: batch size to begin with.
        fixed: a guess at what does not grow with the batch; a bad one costs a few more rehearsals.
    """
    known: dict[int, int] = {}
    low, high, guess = 0, LARGEST_BATCH + 1, start
    while high - low > 1:
        known[guess] = peak_of(guess)
        low, high = (guess, high) if known[guess] <= budget else (low, guess)
        points = known if len(known) > 1 else {0: fixed if fixed < known[guess] else 0, **known}
        both = [batch for batch in (low, high) if batch in points]
        nearest = sorted(points, key=lambda batch: abs(points[batch] - budget))
        ends = both if len(both) == 2 else nearest[:2]
        guess = (low + high) // 2 if len(known) > _LINES else _on_the_line(points, min(ends), max(ends), budget)
        guess = min(high - 1, max(low + 1, guess))
    return Budget(budget, low, known[max(low, 1)], known.get(high))


def _on_the_line(peaks: dict[int, int], first: int, second: int, budget: int) -> int:
    """Where the line through two batches' peaks crosses the budget."""
    slope = (peaks[second] - peaks[first]) / (second - first)
    return first + int((budget - peaks[first]) / slope) if slope > 0 else 2 * second

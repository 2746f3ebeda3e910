"""Which of two values of a metric is the better one: an accuracy is better large, an error small."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Better = Callable[[float, float], bool]
"""Is the first value better than the second? Never where either is no number."""


def first_best(values: Sequence[float], better: Better) -> int:
    """The index of the best value; the first of equals."""
    best = 0
    for index, value in enumerate(values):
        best = index if better(value, values[best]) else best
    return best

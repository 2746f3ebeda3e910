"""More readings of the rows of small classes: each is read again, as `dataset.augment` varies it.

dataset.oversample={to: balance, vary: copies}
    balance        every class is topped up to as many rows as the largest one has
    [1, 3.5]       class c is read factor[c] times as often, rounded down

The copies follow the rows themselves, those of a class in a fixed shuffled order, again and again. They are made of the
training rows as they are read, after the split: no copy of a row is tested on. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transfer_run.data.asked import asked
from transfer_run.errors import UserError

if TYPE_CHECKING:
    from transfer_run.data.rows.subset import Rows

OVERSAMPLE = "oversample"
BALANCE = "balance"


def check_oversample(dataset: Mapping[str, Any]) -> None:
    """`dataset.oversample` where it can be followed.

    Raises:
        UserError: the rows have no classes, or stand in a sequence of tasks; factors that are none; copies that are to
            be varied by nothing.
    """
    node = dataset.get(OVERSAMPLE) or {}
    to = node.get("to")
    if to is None:
        return
    where = f"dataset.{OVERSAMPLE}.to"
    if "tasks" in dataset or not asked(dataset).classes:
        what = "is one task after another" if "tasks" in dataset else f"asks for {dataset['form']}, and has no classes"
        raise UserError(
            f"dataset={dataset['name']} {what}.", where=where, remedy=f"{where}=null, or a dataset of classification"
        )
    factors = isinstance(to, Sequence) and not isinstance(to, str)
    if to != BALANCE and not (factors and to and all(map(_factor, to))):
        raise UserError(
            f"{to!r} is neither '{BALANCE}' nor a list of one number a class, of at least 1.",
            where=where,
            nearest=[BALANCE],
        )
    if factors and dataset.get("num_labels"):
        _check_count(to, int(dataset["num_labels"]))
    if node.get("vary") == "copies" and not dataset.get("augment"):
        raise UserError(
            "The copies are to be varied, and nothing says how.",
            where=f"dataset.{OVERSAMPLE}.vary=copies",
            remedy="dataset.augment=[...], or dataset.oversample.vary=all",
        )


def _check_count(factors: Sequence[float], classes: int) -> None:
    if len(factors) != classes:
        raise UserError(
            f"There are {len(factors)} factors for {classes} classes.", where=f"dataset.{OVERSAMPLE}.to={factors}"
        )


def _factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < float("inf")


def counts_after(counts: Sequence[int], to: str | Sequence[float]) -> list[int]:
    """Readings of each class, of its rows `counts`, in the order of the classes' numbers; none of a class without rows.

    Raises:
        UserError: factors of another number than the classes.
    """
    if isinstance(to, str):
        return [max(counts) if count else 0 for count in counts]
    _check_count(to, len(counts))
    return [int(count * factor + 1e-9) for count, factor in zip(counts, to, strict=True)]


def topped_up(labels: Rows, classes: int, to: str | Sequence[float]) -> tuple[Rows, Rows]:
    """The rows to read, and of each which reading of it that is.

    Args:
        labels: of all rows (n,); those below 0, without a label, are read once.

    Returns:
        Numbers of rows (m,), the n rows themselves first, and numbers of readings (m,), 0 for the first.
    """
    import numpy as np

    from transfer_run.data.rows.splits import shuffled

    counts = np.bincount(labels[labels >= 0], minlength=classes).tolist()
    rows, readings = [np.arange(len(labels))], [np.zeros(len(labels), dtype=np.int64)]
    for number, (count, wanted) in enumerate(zip(counts, counts_after(counts, to), strict=True)):
        more = np.arange(count, wanted)
        own = np.flatnonzero(labels == number)[shuffled(count)] if count else np.arange(0)
        rows.append(own[more % count] if count else own)
        readings.append(more // count if count else own)
    return np.concatenate(rows).astype(np.int64), np.concatenate(readings).astype(np.int64)

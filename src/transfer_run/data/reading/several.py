"""Columns of several labels a row: lists (`["news", "sport"]` in .json), or names between bars (`news|sport`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transfer_run.data.reading.labels import shortened
from transfer_run.data.reading.table import Table
from transfer_run.errors import UserError, nearest_names

BETWEEN = "|"
Several = tuple[int, ...] | None
"""Class numbers of a row, none of them for `[]`; None: the row has no label (an empty field, null)."""


def several_labels(
    table: Table, column: str, names: Sequence[str] | None, count: int | None
) -> tuple[list[Several], tuple[str, ...]]:
    """The class numbers of each row, and the names of the classes: those given, else those that occur, sorted.

    Raises:
        UserError: a label that is none of `names`, more names than `count`, or a value of another kind; with its row.
    """
    table.require([column], "dataset.label_column")
    rows = [_named(table, row, column, value) for row, value in enumerate(table.rows[column][:])]
    known = tuple(names or sorted({name for row in rows for name in row or ()}))
    if count is not None and len(known) > count:
        surplus = next(i for i, row in enumerate(rows) if set(row or ()) & set(known[count:]) or i == len(rows) - 1)
        raise UserError(
            f"The column holds {len(known)} labels, but dataset.num_labels={count}.",
            where=table.locate(surplus, column),
            remedy=f"correct the row, or set dataset.num_labels={len(known)}",
        )
    numbers = {name: number for number, name in enumerate(known)}
    for i, row in enumerate(rows):
        odd = next((name for name in row or () if name not in numbers), None)
        if odd is not None:
            raise UserError(
                f"'{shortened(odd)}' is none of the {len(known)} labels.",
                where=table.locate(i, column),
                nearest=nearest_names(odd, known),
                remedy="correct the row, or name all labels: dataset.label_names=[...]",
            )
    return [None if row is None else tuple(sorted({numbers[name] for name in row})) for row in rows], known


def _named(table: Table, row: int, column: str, value: Any) -> list[str] | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    parts = value.split(BETWEEN) if isinstance(value, str) else value if isinstance(value, list) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int) or not str(part).strip():
            raise UserError(
                f"Labels are words or whole numbers, not {shortened(part, 60)!r}.",
                where=table.locate(row, column),
                remedy=f"write a list of them, or words between bars: news{BETWEEN}sport",
            )
    return [str(part).strip() for part in parts]

"""Columns checked and made into what a model learns: class numbers, values, texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfer_run.data.reading.table import Table
from transfer_run.errors import UserError, nearest_names

UNLABELLED = -1
"""Class number of a row without a label, as in GLUE's test sets."""


def is_unlabelled(label: Any) -> bool:
    """Is this -1 (a class), NaN (a value) or None (a text)?"""
    if isinstance(label, float):
        return math.isnan(label)
    return label is None or (not isinstance(label, str) and label == UNLABELLED)


def class_labels(
    table: Table, column: str, names: Sequence[str] | None, count: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers (n,) int64 of a column of numbers or names; -1 where a row has no label.

    Args:
        names: the class names in order; None: those of the data, else of the column's values in sorted order.
        count: number of classes, if it is fixed.

    Raises:
        UserError: a label outside the range, or a name that is none of `names`; with file, row and column.
    """
    table.require([column], "dataset.label_column")
    values = table.rows[column][:]
    own = getattr(table.rows.features[column], "names", None)
    if all(isinstance(v, str) for v in values):
        known = _names_of(values, names, count)
        if known is None:
            values = [_as_number(table, i, column, v) for i, v in enumerate(values)]
        else:
            _check_count(table, column, values, known, count)
            index = {name: number for number, name in enumerate(known)}
            missing = next((i for i, v in enumerate(values) if v.strip() and v not in index), None)
            if missing is not None:
                raise UserError(
                    f"'{values[missing]}' is none of the {len(known)} labels.",
                    where=table.locate(missing, column),
                    nearest=nearest_names(values[missing], known),
                    remedy="correct the row, or name all labels: dataset.label_names=[...]",
                )
            return np.array([index.get(v, UNLABELLED) for v in values]), tuple(known)
    numbers = np.array([UNLABELLED if v is None or v != v else v for v in values], dtype=float)
    known = list(names or own or [])
    if own and set(own) <= set(known) and list(own) != known:  # the data number the same names otherwise
        _check_range(table, column, numbers, len(own))
        renumbered = np.array([*(known.index(name) for name in own), UNLABELLED])
        return renumbered[numbers.astype(np.int64)], tuple(known)
    limit = count or len(known) or int(numbers.max(initial=0)) + 1
    _check_range(table, column, numbers, limit)
    return numbers.astype(np.int64), tuple(known or (str(n) for n in range(limit)))


def _names_of(values: list[str], names: Sequence[str] | None, count: int | None) -> list[str] | None:
    """The class names in a column of texts; None when the texts are the numbers of named classes."""
    seen = sorted({v for v in values if v.strip()})
    if all(_is_number(v) for v in seen) and not set(seen) <= set(names or ()):
        return None
    return list(names) if names else seen


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_count(table: Table, column: str, values: list[str], known: Sequence[str], count: int | None) -> None:
    """No more names than `dataset.num_labels` has room for."""
    if count is None or len(known) <= count:
        return
    surplus = next((i for i, v in enumerate(values) if v in known[count:]), 0)
    shown = ", ".join(repr(name) for name in known[:6]) + (", ..." if len(known) > 6 else "")
    raise UserError(
        f"The column holds {len(known)} labels ({shown}), but dataset.num_labels={count}.",
        where=table.locate(surplus, column),
        remedy=f"correct the row, or set dataset.num_labels={len(known)}",
    )


def _as_number(table: Table, row: int, column: str, value: str) -> float:
    if not value.strip():
        return UNLABELLED
    try:
        return float(value)
    except ValueError:
        raise UserError(
            f"'{value}' is no number.", where=table.locate(row, column), remedy="correct the row, or leave it empty"
        ) from None


def _check_range(table: Table, column: str, numbers: np.ndarray, limit: int) -> None:
    wrong = np.flatnonzero((numbers != np.floor(numbers)) | (numbers < UNLABELLED) | (numbers >= limit))
    if len(wrong):
        value = numbers[wrong[0]]
        raise UserError(
            f"The label {value:g} is outside the range 0 to {limit - 1}{_more(len(wrong))}.",
            where=table.locate(int(wrong[0]), column),
            remedy="correct the row (-1 or an empty field: no label), or set dataset.num_labels",
        )


def _more(count: int) -> str:
    return f", and {count - 1} more rows' labels are" if count > 1 else ""


def value_labels(table: Table, column: str, unlabelled: float | None = None) -> np.ndarray:
    """Float labels (n,) float64 of a regression column; NaN where a row has none (empty, null or `unlabelled`)."""
    table.require([column], "dataset.label_column")
    values: list[Any] = table.rows[column][:]
    numbers = np.full(len(values), math.nan)
    for i, value in enumerate(values):
        if isinstance(value, str):
            value = _as_number(table, i, column, value) if value.strip() else None
        if value is not None and value != unlabelled:
            numbers[i] = value
    return numbers


def check_texts(table: Table, columns: Sequence[str]) -> None:
    """Every row has a text in each of `columns`."""
    table.require(columns, "dataset.text_columns")
    for column in columns:
        empty = next((i for i, value in enumerate(table.rows[column]) if value is None), None)
        if empty is not None:
            raise UserError(
                "A row has no text.", where=table.locate(empty, column), remedy="fill it in, or take the row out"
            )

"""Columns checked and made into what a model learns: class numbers, values, texts."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
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


def said_of_unlabelled(split: str, missing: int, rows: int) -> list[str]:
    """What becomes of the rows of a split that have no label; nothing to say where all have one."""
    what = "not learned from" if split == "train" else "predicted, not scored"
    return [f"{split}: {missing} of {rows} rows have no label; {what}"] if missing else []


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
    if own:
        return _numbered(table, column, values, list(own), names, count)
    written = [_written(table, i, column, v, names) for i, v in enumerate(values)]
    seen = {v for v in written if v.strip()}
    if seen and all(map(_is_number, seen)) and not (names and not all(map(_is_number, names)) and seen <= set(names)):
        numbers = np.array([_as_number(table, i, column, v) for i, v in enumerate(written)])
        return _of_numbers(table, column, numbers, names, count)
    known = list(names) if names else sorted(seen)
    _check_count(table, column, written, known, count)
    index = {name: number for number, name in enumerate(known)}
    missing = next((i for i, v in enumerate(written) if v.strip() and v not in index), None)
    if missing is not None:
        raise _no_label(table, missing, column, written[missing], known)
    return np.array([index.get(v, UNLABELLED) for v in written], dtype=np.int64), tuple(known)


def _numbered(
    table: Table, column: str, values: list[Any], own: list[str], names: Sequence[str] | None, count: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of a column that names its own classes, in the order of `names` where these are given."""
    numbers = np.array([UNLABELLED if v is None else v for v in values], dtype=float)
    known = list(names or own)
    if set(own) <= set(known) and own != known:  # the data number the same names otherwise
        _check_range(table, column, numbers, len(own))
        renumbered = np.array([*(known.index(name) for name in own), UNLABELLED])
        return renumbered[numbers.astype(np.int64)], tuple(known)
    _check_range(table, column, numbers, count or len(known))
    return numbers.astype(np.int64), tuple(known)


def _of_numbers(
    table: Table, column: str, numbers: np.ndarray, names: Sequence[str] | None, count: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels written as numbers: the values that occur are the classes, unless names or their number say otherwise.

    Names that are numbers are matched with the values, whatever their order; other names, or a number of classes that
    all values lie below, number the classes from 0.
    """
    if names and all(map(_is_number, names)):
        values = [float(name) for name in names]
    else:
        occurring = sorted({float(n) for n in numbers if n != UNLABELLED})
        limit = count or len(names or ())
        given = names or not limit or len(occurring) != limit
        values = [float(n) for n in range(limit)] if limit and given else occurring
        _check_range(table, column, numbers, int(max(values, default=0)) + 1)
    index = {float(UNLABELLED): UNLABELLED} | {value: number for number, value in enumerate(values)}
    known = tuple(names or (str(int(value)) for value in values))
    missing = next((i for i, n in enumerate(numbers) if float(n) not in index), None)
    if missing is not None:
        raise _no_label(table, missing, column, f"{numbers[missing]:g}", known)
    return np.array([index[float(n)] for n in numbers], dtype=np.int64), known


MISSING = {"nan", "na", "n/a", "null", "none", "<na>", "?"}
"""Words that other programs write where there is no value."""


def said_of_classes(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """What a user may not expect of the training labels (n,)."""
    found = np.unique(labels[labels >= 0])
    notes = []
    if len(found) == 1:
        notes.append(f"train: every row has the label '{names[int(found[0])]}': nothing can be learned from it")
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    for alike in plain.values():
        if len(alike) > 1:
            notes.append(
                f"{', '.join(map(repr, alike))} are classes of their own, though they are written nearly alike"
            )
    missing = [repr(name) for name in names if name.casefold() in MISSING]
    if missing:
        notes.append(f"{', '.join(missing)} is taken for the name of a class; a row without a label has an empty field")
    return notes


def said_of_values(values: np.ndarray) -> list[str]:
    """What a user may not expect of the training values (n,), NaN where a row has none."""
    found = np.unique(values[~np.isnan(values)])
    alike = len(found) == 1 and len(values) > 1
    return [f"train: every row has the value {found[0]:g}: nothing can be learned from it"] if alike else []


def said_of_numbers(table: Table, column: str, names: Sequence[str] | None) -> list[str]:
    """What a user may not expect of classes that are written as numbers.

    Args:
        names: `dataset.label_names`.
    """
    values = table.rows[column][:]
    written = {v.strip() if isinstance(v, str) else v for v in values if isinstance(v, str | int | float)} - {""}
    texts = {str(v) for v in written if v == v}
    if getattr(table.rows.features[column], "names", None) or not all(map(_is_number, texts)):
        return []
    notes, spelled = [], dict[float, list[str]]()
    for text in sorted(texts):
        spelled.setdefault(float(text), []).append(text)
    for number, alike in spelled.items():
        if len(alike) > 1:
            notes.append(f"{', '.join(map(repr, alike))} are one label, the number {number:g}")
    if UNLABELLED in spelled and not (names and "-1" in map(str, names)):
        notes.append("-1 is taken for no label; a class that is called so is named: dataset.label_names=['-1', ...]")
    return [f"{Path(table.source).name}: {note}" for note in notes]


def _no_label(table: Table, row: int, column: str, value: str, known: Sequence[str]) -> UserError:
    return UserError(
        f"'{shortened(value)}' is none of the {len(known)} labels.",
        where=table.locate(row, column),
        nearest=nearest_names(value, known),
        remedy="correct the row, or name all labels: dataset.label_names=[...]",
    )


def shortened(value: Any, most: int = 300) -> str:
    """A value as a message shows it."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _written(table: Table, row: int, column: str, value: Any, names: Sequence[str] | None) -> str:
    """A label as text; empty where there is none.

    Raises:
        UserError: a list, an object, a date or bytes.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value) if not names or str(value) in names else str(int(value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str | int):
        return str(value)
    several = "; several labels a row are not trained on" if isinstance(value, list) else ""
    raise UserError(
        f"A label is a word or a number, not {shortened(value, 60)} ({type(value).__name__}){several}.",
        where=table.locate(row, column),
        remedy="write one word or number a row, or name another column: dataset.label_column=...",
    )


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
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"'{shortened(value)}' is no number.",
            where=table.locate(row, column),
            remedy="correct the row, or leave it empty",
        )
    return number


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
    """Float labels (n,) float64 of a regression column; NaN where a row has none (empty, null or `unlabelled`).

    Raises:
        UserError: a value that is no finite number; with file, row and column.
    """
    table.require([column], "dataset.label_column")
    values: list[Any] = table.rows[column][:]
    numbers = np.full(len(values), math.nan)
    for i, value in enumerate(values):
        if isinstance(value, str):
            value = _as_number(table, i, column, value) if value.strip() else None
        elif value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise UserError(
                f"{shortened(value, 60)} is no finite number.",
                where=table.locate(i, column),
                remedy="correct the row, or leave it empty",
            )
        if value is not None and value != unlabelled:
            numbers[i] = value
    return numbers


def check_trained(table: Table, column: str, values: np.ndarray) -> None:
    """Every training row has a value (n,): nothing can be learned from one without."""
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        raise UserError(
            f"A training row has no value{f', and {len(missing) - 1} more have none' * (len(missing) > 1)}.",
            where=table.locate(int(missing[0]), column),
            remedy="fill it in, or take the row out",
        )


def check_texts(table: Table, columns: Sequence[str]) -> None:
    """Every row has a text, or a number, in each of `columns`."""
    table.require(columns, "dataset.text_columns")
    for column in columns:
        for row, value in enumerate(table.rows[column]):
            if value is None:
                raise UserError(
                    "A row has no text.", where=table.locate(row, column), remedy="fill it in, or take the row out"
                )
            if not isinstance(value, str | int | float):
                raise UserError(
                    f"A text is expected, not {shortened(value, 60)} ({type(value).__name__}).",
                    where=table.locate(row, column),
                    remedy="write it as one text, or name another column: dataset.text_columns=[...]",
                )

"""A part of a data set: row numbers by split, in a file that one run writes and another one reads (`dataset.rows`).

rows.json
  rows      {"train": [0, 5, ...], ...}   numbers of the kept rows, in the order in which they are counted;
                                          a split that is not named is whole
  dataset   name of the data set          these three are compared with the data set that is read, where they are
  labels    its label names               there: a file written by hand needs `rows` alone
  sizes     its rows by split
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfer_run.errors import UserError, nearest_names
from transfer_run.files import write_atomically

FILE = "rows.json"
Rows = NDArray[np.int64]


def write_subset(
    folder: Path, dataset: str, labels: Sequence[str], sizes: Mapping[str, int], rows: Mapping[str, Rows]
) -> Path:
    """Write `rows.json` into `folder`, atomically; returns its path.

    Args:
        dataset, labels, sizes: name, label names and rows by split of the whole data set.
        rows: kept row numbers by split.
    """
    content = {"schema": 1, "dataset": dataset, "labels": list(labels), "sizes": dict(sizes)}
    content["rows"] = {split: [int(row) for row in kept] for split, kept in rows.items()}
    write_atomically(folder / FILE, json.dumps(content))
    return folder / FILE


def read_subset(source: str, dataset: str, labels: Sequence[str], sizes: Mapping[str, int]) -> dict[str, Rows]:
    """The kept rows by split, checked against the data set that they are rows of.

    Args:
        source: the file, or the folder of a run that wrote one.
        dataset, labels, sizes: of the data set that is read.

    Raises:
        UserError: no such file, not of this form, or of another data set.
    """
    path, content = _read(source)
    for key, own in (("dataset", dataset), ("labels", list(labels)), ("sizes", dict(sizes))):
        if key in content and content[key] != own:
            raise UserError(
                f"The kept rows are those of another data set: its {key} {content[key]}, here {own}.",
                where=f"dataset.rows: {path}",
                remedy="read the data set that was pruned, with the same options",
            )
    return {split: _checked(path, split, kept, sizes) for split, kept in content["rows"].items()}


def digest(rows: Mapping[str, Rows]) -> str:
    """SHA-256 of the rows, for what is stored by them."""
    named = {split: kept.tolist() for split, kept in sorted(rows.items())}
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _read(source: str) -> tuple[Path, dict[str, Any]]:
    if source.startswith("run:"):
        raise UserError(
            "The rows of a run are looked up by the run that reads them, not here.",
            where=f"dataset.rows={source}",
            remedy="name the run's folder",
        )
    path = Path(source).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            "There are no kept rows.",
            where=f"dataset.rows: {path}",
            remedy="name a file of rows, or a run that makes one (method=dp4tl)",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"The kept rows cannot be read: {error}.",
            where=f"dataset.rows: {path}",
            remedy='write JSON, row numbers by split: {"rows": {"train": [0, 5]}}',
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), dict):
        raise UserError(
            "The file names no rows.", where=f"dataset.rows: {path}", remedy='write {"rows": {"train": [0, 2, ...]}}'
        )
    return path, content


def _checked(path: Path, split: str, kept: Any, sizes: Mapping[str, int]) -> Rows:
    where = f"dataset.rows: {path}, {split}"
    if split not in sizes:
        near = nearest_names(split, sizes) or sorted(sizes)
        raise UserError(f"The data set has no split {split!r}.", where=where, nearest=near)
    if not isinstance(kept, list) or not all(type(row) is int for row in kept):
        raise UserError("Rows are a list of whole numbers, counted from 0.", where=where)
    rows = np.asarray(kept, dtype=np.int64)
    outside = rows[(rows < 0) | (rows >= sizes[split])]
    if len(outside):
        raise UserError(f"There is no row {outside[0]}: the split has {sizes[split]} rows.", where=where)
    if len(np.unique(rows)) != len(rows):
        raise UserError("A row is kept twice.", where=where)
    return rows

"""The tables that a choice stands in, and what was recorded of it in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from transfer_run.files import read_json
from transfer_run.tables.sheet import Group, Sheet, figure
from transfer_run.tables.spec import Column, Row, TableSpec, names, read, recorded_file


def tables_of(group: str, name: str) -> list[TableSpec]:
    """The tables whose words choose `group=name`, in a row, in a column or for all cells; and those of its own name."""
    word = f"{group}={name}"
    found = []
    for spec in _read(tuple(names())):
        told = [spec.words, *(column.words for column in spec.columns), *(row.words or () for row in spec.rows)]
        own = group == "method" and spec.name.rpartition("/")[0] == name
        if own or any(word in words for words in told):
            found.append(spec)
    return found


@cache
def _read(known: tuple[str, ...]) -> list[TableSpec]:
    return [read(name) for name in known]


def measured(group: str, name: str, spec: TableSpec) -> Sheet | None:
    """What is recorded of `group=name` in a table, a line a row; None where nothing is, or at smoke scale alone.

    A figure that was taken over several seeds has its spread beside it where it is recorded.
    """
    path = recorded_file(spec.name)
    if not path.is_file():
        return None
    content = read_json(path, "record the table again")
    if content.get("scale") == "smoke":
        return None
    cells = {(cell["row"], cell["column"]): cell for cell in content["cells"] if cell.get("ours") is not None}
    here = [(row, column) for row, column in _places(group, name, spec) if (row.name, column.name) in cells]
    columns = [column for column in spec.columns if any(column is each for _, each in here)]
    rows = [row for row in spec.rows if any(row is each for each, _ in here)]
    if not here:
        return None
    groups = [Group("row"), *(Group(f"{column.label} ({column.unit})") for column in columns)]
    lines = [[row.name, *(_shown(cells.get((row.name, c.name)), (row, c) in here) for c in columns)] for row in rows]
    return Sheet(f"{spec.title} (transfer-table {spec.name} --source recorded)", "", groups, lines)


def _places(group: str, name: str, spec: TableSpec) -> Iterator[tuple[Row, Column]]:
    """The cells whose run is of `group=name`; a mean over columns belongs to its row."""
    word = f"{group}={name}"
    for row in spec.rows:
        for column in spec.columns if row.words is not None else ():
            of = [next(c for c in spec.columns if c.name == part) for part in column.of] or [column]
            if all(word in spec.cell_words(row, each, "paper") for each in of):
                yield row, column


def _shown(cell: Mapping[str, Any] | None, here: bool) -> str:
    if cell is None or not here:
        return "-"
    spread = f" ± {figure(float(cell['spread']))}" if cell.get("spread") is not None else ""
    return figure(float(cell["ours"])) + spread

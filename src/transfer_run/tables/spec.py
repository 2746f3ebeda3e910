"""A paper's table as data: rows, columns, the paper's figures, and the words of the run that would produce ours.

configs/table/KEY/ID.yaml
  words    what all cells share            words = table + row + column (the last one wins)
  columns  unit, where ours comes from     from: plan (memory, parameters) | run (scores) | none
  rows     words and the paper's figures   a figure that is missing is left out, never guessed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment import registry

ORIGINS = ("plan", "run", "none")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        value: dotted path into a plan's or a result's JSON, e.g. `memory.peak`, `metrics.test/accuracy`.
        divide: what the value is divided by to be in `unit` (1048576000 for the papers' GB of 1000 MiB).
        recalled: the paper's figures of this column stand here from memory, not from the paper.
    """

    name: str
    label: str
    unit: str
    origin: str
    value: str = ""
    divide: float = 1.0
    words: tuple[str, ...] = ()
    recalled: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One row; `words` is None where no run of ours can produce it, and `note` says why."""

    name: str
    words: tuple[str, ...] | None
    paper: Mapping[str, float | None]
    recalled: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A table; `name` is KEY/ID."""

    name: str
    title: str
    words: tuple[str, ...]
    smoke: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    picture: Mapping[str, str] | None = None

    def cell_words(self, row: Row, column: Column, scale: str) -> list[str]:
        """The overrides of the run behind a cell; `smoke` shrinks it to embedded data and tiny backbones."""
        words = [*self.words, *(row.words or ()), *column.words]
        if scale == "smoke":
            kept = [w for w in words if w.partition("=")[0] not in {s.partition("=")[0] for s in self.smoke}]
            words = [*kept, *self.smoke]
        return words


def names() -> list[str]:
    """All tables, KEY/ID."""
    return registry.names("table", ())


def read(name: str) -> TableSpec:
    """The table called `name`.

    Raises:
        UserError: there is no such table, or its file is not well-formed.
    """
    if name not in names():
        raise UserError(
            f"There is no table {name!r}.",
            nearest=nearest_names(name, names()),
            remedy="transfer-list tables names them",
        )
    file = registry.find("table", name, ())[0]
    content = registry.read_yaml(file)
    try:
        return _spec(name, content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The table {name} is not well-formed: {error}.", where=str(file)) from error


def _spec(name: str, content: Mapping[str, Any]) -> TableSpec:
    columns = tuple(_column(key, value) for key, value in content["columns"].items())
    rows = tuple(_row(value, {c.name for c in columns}) for value in content["rows"])
    return TableSpec(
        name,
        content["title"],
        _words(content.get("words")),
        _words(content.get("smoke")),
        columns,
        rows,
        tuple(content.get("notes", ())),
        content.get("picture"),
    )


def _column(name: str, content: Mapping[str, Any]) -> Column:
    if content["from"] not in ORIGINS:
        raise ValueError(f"column {name}: from is one of {', '.join(ORIGINS)}, not {content['from']!r}")
    return Column(
        name,
        content.get("label", name),
        content["unit"],
        content["from"],
        content.get("value", ""),
        float(content.get("divide", 1)),
        _words(content.get("words")),
        bool(content.get("recalled", False)),
        content.get("note", ""),
    )


def _row(content: Mapping[str, Any], columns: set[str]) -> Row:
    paper = content.get("paper", {})
    unknown = set(paper) - columns
    if unknown:
        raise ValueError(f"row {content['row']}: no column {', '.join(sorted(unknown))}")
    words = None if content.get("words", "") is None else _words(content.get("words"))
    return Row(content["row"], words, paper, frozenset(content.get("recalled", ())), content.get("note", ""))


def _words(text: str | Sequence[str] | None) -> tuple[str, ...]:
    if text is None:
        return ()
    return tuple(text.split()) if isinstance(text, str) else tuple(text)


def file_of(name: str) -> Path:
    return registry.find("table", name, ())[0]

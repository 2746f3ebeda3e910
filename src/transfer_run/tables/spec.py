"""A paper's table as data: rows, columns, the paper's figures, and the words of the run that would produce ours.

configs/table/KEY/ID.yaml
  words    what all cells share             words = table + column + row (the last one wins)
  smoke    words that shrink every cell     `~KEY` takes out the words whose key begins with KEY
  seeds    seeds of a `run` cell            its figure is their `statistic`, mean or median
  columns  unit, where ours comes from      from: plan (memory, parameters) | run (scores) | mean (of: columns) | none
           better: small where a small value is the better one
  rows     words and the paper's figures    a figure that is missing is left out, never guessed
  picture  columns: {x: memory, y: score} for points, {x: memory} for bars, {panels: a b c} for bars side by side,
           {against: memory} for ours over the paper's

A column whose name holds `{}` stands for one of each name in `each`, and takes a list of figures in a row:

    "{}": {each: [cola, rte], unit: "%", from: run, value: metrics.test/accuracy, words: "dataset=glue/{}"}
    - {row: full, words: method=full, paper: {"{}": [62.8, 74.1]}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.files import read_yaml

ORIGINS = ("plan", "run", "mean", "none")
BETTER = ("large", "small")
STATISTICS = ("mean", "median")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        value: what is asked: a path into a plan's or a result's JSON (`memory.peak`, `metrics.test/accuracy`), or
            one of `tables/figures.py`'s own (`inference.peak`, `parameters.counted`).
        divide: what the value is divided by to be in `unit` (1048576000 for the papers' GB of 1000 MiB).
        of: the columns that `from: mean` averages.
        recalled: the paper's figures of this column stand here from memory, not from the paper.
        better: `large` or `small`, which of its values is the better one: for the front of a picture.
        derived: of `from: mean`: where the paper prints none, its figure is the mean of those it prints.
        once: of `from: run`: asked of the first seed alone, for it is no matter of chance (memory).
    """

    name: str
    label: str
    unit: str
    origin: str
    value: str = ""
    divide: float = 1.0
    words: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    recalled: bool = False
    derived: bool = False
    note: str = ""
    better: str = "large"
    once: bool = False


@dataclass(frozen=True)
class Row:
    """One row; `words` is None where no run of ours can produce it, and `note` says why.

    Attributes:
        recalled: columns whose figure stands here from memory; derived: those computed from printed figures.
        unit, divide, value: instead of those of columns from plans, where a table collects figures of several papers.
        counter: what the paper's memory figure counts, e.g. `allocated`.
        compared: False leaves the row out of the summary of differences: its setting or counter is not ours.
        smoke: words of the row at smoke scale.
        cells: words of single columns, by name.
    """

    name: str
    words: tuple[str, ...] | None
    paper: Mapping[str, float | None]
    recalled: frozenset[str] = frozenset()
    derived: frozenset[str] = frozenset()
    note: str = ""
    unit: str = ""
    divide: float | None = None
    value: str = ""
    counter: str = ""
    compared: bool = True
    smoke: tuple[str, ...] = ()
    cells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
    seeds: tuple[int, ...] = ()
    statistic: str = "mean"

    @property
    def file_name(self) -> str:
        """KEY_ID, for files."""
        return self.name.replace("/", "_")

    def cell_words(self, row: Row, column: Column, scale: str) -> list[str]:
        """The overrides of the run behind a cell; `smoke` shrinks it to embedded data and tiny backbones."""
        words = [*self.words, *column.words, *(row.words or ()), *row.cells.get(column.name, ())]
        if scale == "smoke":
            for word in (*self.smoke, *row.smoke):
                key = word.partition("=")[0]
                dropped = key.removeprefix("~")
                words = [w for w in words if not (_key(w) == key or (key != dropped and _key(w).startswith(dropped)))]
                words += [] if key != dropped else [word]
        return list({_key(word): word for word in words}.values())


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def names(folders: Sequence[Path] = ()) -> list[str]:
    """All tables, KEY/ID; those in `table/` of the user's folders too."""
    return registry.names("table", folders)


def read(name: str, folders: Sequence[Path] = ()) -> TableSpec:
    """The table called `name`, shipped or in `table/` of one of the user's folders.

    Raises:
        UserError: there is no such table, or its file is not well-formed.
    """
    if name not in names(folders):
        raise UserError(
            f"There is no table {name!r}.",
            nearest=nearest_names(name, names(folders)),
            remedy="transfer-list tables names them",
        )
    file = file_of(name, folders)
    content = read_yaml(file)
    try:
        return _spec(name, content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The table {name} is not well-formed: {error}.", where=str(file)) from error


def file_of(name: str, folders: Sequence[Path] = ()) -> Path:
    """Where the table called `name` is written down."""
    return registry.find("table", name, folders)[0]


def recorded_file(name: str) -> Path:
    """Where recorded results of a table stand in the repository."""
    return registry.config_root().parent / "tests" / "recorded" / "tables" / f"{name.replace('/', '_')}.json"


def _spec(name: str, content: Mapping[str, Any]) -> TableSpec:
    written = content["columns"]
    groups = {key: [str(item) for item in value["each"]] for key, value in written.items() if "each" in value}
    columns = tuple(column for key, value in written.items() for column in _columns(key, value))
    known = {column.name for column in columns}
    for column in columns:
        if set(column.of) - known:
            raise ValueError(f"column {column.name}: no column {', '.join(sorted(set(column.of) - known))}")
    rows = tuple(_row(value, known, groups) for value in content["rows"])
    repeated = {row.name for row in rows if sum(other.name == row.name for other in rows) > 1}
    if repeated:
        raise ValueError(f"two rows are called {', '.join(sorted(repeated))}")
    statistic = content.get("statistic", "mean")
    if statistic not in STATISTICS:
        raise ValueError(f"statistic is one of {', '.join(STATISTICS)}, not {statistic!r}")
    picture = content.get("picture")
    drawn = {column for columns in (picture or {}).values() for column in columns.split()}
    if drawn - known:
        raise ValueError(f"picture: no column {', '.join(sorted(drawn - known))}")
    return TableSpec(
        name,
        content["title"],
        _words(content.get("words")),
        _words(content.get("smoke")),
        columns,
        rows,
        tuple(content.get("notes", ())),
        picture,
        tuple(content.get("seeds", ())),
        statistic,
    )


def _columns(name: str, content: Mapping[str, Any]) -> list[Column]:
    if content["from"] not in ORIGINS:
        raise ValueError(f"column {name}: from is one of {', '.join(ORIGINS)}, not {content['from']!r}")
    column = Column(
        name,
        content.get("label", name),
        content["unit"],
        content["from"],
        content.get("value", ""),
        float(content.get("divide", 1)),
        _words(content.get("words")),
        tuple(content.get("of", ())),
        bool(content.get("recalled", False)),
        bool(content.get("derived", False)),
        content.get("note", ""),
        content.get("better", "large"),
        bool(content.get("once", False)),
    )
    if column.better not in BETTER:
        raise ValueError(f"column {name}: better is one of {', '.join(BETTER)}, not {column.better!r}")
    if "each" not in content:
        return [column]
    return [
        replace(
            column,
            name=name.replace("{}", str(item)),
            label=column.label.replace("{}", str(item)),
            value=column.value.replace("{}", str(item)),
            words=tuple(word.replace("{}", str(item)) for word in column.words),
        )
        for item in content["each"]
    ]


def _row(content: Mapping[str, Any], columns: set[str], groups: Mapping[str, Sequence[str]]) -> Row:
    paper: dict[str, float | None] = {}
    for key, figure in content.get("paper", {}).items():
        if key not in groups:
            paper[key] = figure
        elif len(figure) != len(groups[key]):
            raise ValueError(f"row {content['row']}: {len(figure)} figures for the {len(groups[key])} columns {key}")
        else:
            paper |= {key.replace("{}", item): one for item, one in zip(groups[key], figure, strict=True)}
    recalled, derived = ({one for key in content.get(mark, ()) for one in _expanded(key, groups)}
                         for mark in ("recalled", "derived"))  # fmt: skip
    cells = {key: _words(words) for key, words in content.get("cells", {}).items()}
    unknown = (set(paper) | recalled | derived | set(cells)) - columns
    if unknown:
        raise ValueError(f"row {content['row']}: no column {', '.join(sorted(unknown))}")
    return Row(
        str(content["row"]),
        None if content.get("words", "") is None else _words(content.get("words")),
        paper,
        frozenset(recalled),
        frozenset(derived),
        content.get("note", ""),
        content.get("unit", ""),
        float(content["divide"]) if "divide" in content else None,
        content.get("value", ""),
        content.get("counter", ""),
        bool(content.get("compared", True)),
        _words(content.get("smoke")),
        cells,
    )


def _expanded(key: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [key.replace("{}", item) for item in groups[key]] if key in groups else [key]


def _words(text: str | Sequence[str] | None) -> tuple[str, ...]:
    if text is None:
        return ()
    return tuple(text.split()) if isinstance(text, str) else tuple(text)

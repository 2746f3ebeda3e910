"""From a table to its cells: plans, or finished runs (missing ones are carried out)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.tables.figures import PLANNED, NoFigure, ask, prepare
from transfer_run.tables.spec import Column, Row, TableSpec

NEEDS_RUN = "needs --source run"
NOT_OURS = "not produced by a run"
SMOKE = "smoke scale"


@dataclass(frozen=True)
class Cell:
    """A cell of the contract: the paper's figure and ours, or why there is none.

    Attributes:
        paper_source: `recalled` where the paper's figure is from memory, `derived` where it is computed from others.
        counter: what the paper's memory figure counts, where the table says so.
        compared: does the cell count in the summary of differences?
        spread: standard deviation of our figure over `seeds` runs of different seeds (n - 1); None: of one run.
    """

    row: str
    column: str
    unit: str
    paper: float | None
    ours: float | None
    source: str
    identity: str | None
    note: str = ""
    paper_source: str = ""
    counter: str = ""
    compared: bool = True
    spread: float | None = None
    seeds: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The contract's keys, and the others where they say something."""
        content = asdict(self)
        defaults = {"paper_source": "", "counter": "", "compared": True, "spread": None, "seeds": None}
        for name, default in defaults.items():
            if content[name] == default:
                del content[name]
        return content

    @property
    def difference(self) -> float | None:
        """Ours over the paper's, less one; None where one is missing, or the scale is not the paper's."""
        if not self.paper or self.ours is None or SMOKE in self.note:
            return None
        return self.ours / self.paper - 1


def produce(
    spec: TableSpec, source: str, scale: str, say: Callable[[str], None] = print, extra: Sequence[str] = ()
) -> list[Cell]:
    """All cells of a table, row by row.

    Args:
        source: `plan` (memory and parameters without GPU, data or download) or `run` (carries out what is missing).
        scale: `paper`, or `smoke`: the same code on embedded data and tiny backbones.
        say: hears of every cell before it is made.
        extra: words that win over the table's in every cell, e.g. `output_dir=FOLDER`.
    """
    prepare(_planned(spec, source, scale, extra), lambda line: say(f"{spec.name}: {line}"))
    cells = []
    for row in spec.rows:
        ours: dict[str, Cell] = {}
        for column in sorted(spec.columns, key=lambda column: column.origin == "mean"):  # means come last,
            say(f"{spec.name}: {row.name}, {column.label}")
            ours[column.name] = _cell(spec, row, column, source, scale, extra, ours)
        cells += [ours[column.name] for column in spec.columns]  # but stand where the paper has them
    return cells


def of_smoke_scale(cells: Sequence[Cell]) -> bool:
    """Were the cells made on embedded data and tiny backbones?"""
    return any(SMOKE in cell.note for cell in cells)


def check_extra(spec: TableSpec, scale: str, extra: Sequence[str]) -> None:
    """Refuse words that no row of the table can take: a table of blanks would say less, and later.

    Raises:
        UserError: what is wrong with them.
    """
    first: UserError | None = None
    for row in spec.rows:
        column = next((c for c in spec.columns if c.origin in ("plan", "run")), None)
        if row.words is None or column is None or (scale == "smoke" and not spec.smoke):
            continue
        words = spec.cell_words(row, column, scale)
        try:
            compose([*words, *extra])
            return
        except UserError as error:
            first = first or error
    if first is not None:
        raise first


def _planned(spec: TableSpec, source: str, scale: str, extra: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Words and values of the cells whose figure a plan gives."""
    if scale == "smoke" and not spec.smoke:
        return
    for row in spec.rows:
        for column in spec.columns:
            value = row.value or column.value
            planned = source == "plan" or value.partition(".")[0] in PLANNED
            if row.words is not None and column.origin == "plan" and planned:
                yield (*spec.cell_words(row, column, scale), *extra), value


def _cell(
    spec: TableSpec, row: Row, column: Column, source: str, scale: str, extra: Sequence[str], others: Mapping[str, Cell]
) -> Cell:
    paper, paper_source = _printed(row, column, others)
    divide = row.divide if row.divide is not None and column.origin == "plan" else column.divide
    ours = _ours(spec, row, column, source, scale, extra, others)
    smoke = SMOKE if scale == "smoke" else ""
    notes = "; ".join(dict.fromkeys(note for note in (ours.why, row.note, column.note, smoke) if note))
    return Cell(
        row.name,
        column.name,
        row.unit if row.unit and column.origin == "plan" else column.unit,
        paper,
        None if ours.figure is None else ours.figure / divide,
        ours.origin,
        ours.identity,
        notes,
        paper_source,
        row.counter,
        row.compared and not smoke,
        None if ours.spread is None else ours.spread / divide,
        ours.seeds,
    )


def _printed(row: Row, column: Column, others: Mapping[str, Cell]) -> tuple[float | None, str]:
    """The paper's figure and where it is from: read (nothing is said), recalled, or derived from what it prints."""
    paper = row.paper.get(column.name)
    if paper is not None:
        if column.recalled or column.name in row.recalled:
            return paper, "recalled"
        return paper, "derived" if column.name in row.derived else ""
    parts = [others[name] for name in column.of] if column.derived else []
    if not parts or any(cell.paper is None for cell in parts):
        return None, ""
    recalled = any(cell.paper_source == "recalled" for cell in parts)
    return round(statistics.fmean(cell.paper or 0.0 for cell in parts), 2), "recalled" if recalled else "derived"


@dataclass(frozen=True)
class _Ours:
    """Our figure, where it comes from, the identity of its first run, why there is none; its spread over seeds."""

    figure: float | None
    origin: str
    identity: str | None = None
    why: str = ""
    spread: float | None = None
    seeds: int | None = None


def _ours(
    spec: TableSpec, row: Row, column: Column, source: str, scale: str, extra: Sequence[str], others: Mapping[str, Cell]
) -> _Ours:
    if column.origin == "none":
        return _Ours(None, source, why=NOT_OURS)
    if row.words is None:
        return _Ours(None, source, why=row.note or NOT_OURS)
    if column.origin == "run" and source == "plan":
        return _Ours(None, source, why=NEEDS_RUN)
    if column.origin == "mean":
        return _mean(column, source, others)
    if scale == "smoke" and not spec.smoke:
        return _Ours(None, source, why="this table has no smoke scale")
    words = [*spec.cell_words(row, column, scale), *extra]
    seeds = [f"seed={seed}" for seed in spec.seeds[: 1 if column.once else None]] if column.origin == "run" else []
    try:
        answers = [ask((*words, *seed), row.value or column.value, source) for seed in _repeated(seeds, scale)]
    except Exception as error:  # whatever breaks a cell is told in its place; the other cells go on
        return _Ours(None, source, why=_reason(error))
    combine = statistics.median if spec.statistic == "median" else statistics.fmean
    figures, (_, identity, origin) = [figure for figure, _, _ in answers], answers[0]
    if len(figures) == 1:
        return _Ours(figures[0], origin, identity)
    return _Ours(combine(figures), origin, identity, spread=statistics.stdev(figures), seeds=len(figures))


def _repeated(seeds: Sequence[str], scale: str) -> list[tuple[str, ...]]:
    """The words of each repetition; at smoke scale one is enough."""
    if not seeds:
        return [()]
    return [(seeds[0],)] if scale == "smoke" else [(seed,) for seed in seeds]


def _mean(column: Column, source: str, others: Mapping[str, Cell]) -> _Ours:
    figures = [others[name].ours for name in column.of]
    missing = [name for name, figure in zip(column.of, figures, strict=True) if figure is None]
    if missing:
        note = NEEDS_RUN if source == "plan" else f"a mean that lacks {', '.join(missing)}"
        return _Ours(None, source, why=note)
    return _Ours(statistics.fmean(figure for figure in figures if figure is not None), source)


def _reason(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".").replace("; ", ", ")
    return line if isinstance(error, UserError | NoFigure) else f"{type(error).__name__}: {line}"


def summary(spec: TableSpec, cells: Sequence[Cell]) -> list[str]:
    """For each planned column with two or more comparable points: median and worst difference to the paper."""
    lines = []
    for column in spec.columns:
        points = [
            (difference, cell)
            for cell in cells
            if cell.column == column.name and cell.compared and (difference := cell.difference) is not None
        ]
        if column.origin != "plan" or len(points) < 2:
            continue
        median = statistics.median(abs(difference) for difference, _ in points)
        worst, where = max(points, key=lambda point: abs(point[0]))
        lines.append(
            f"{column.label}: median difference {100 * median:.1f} %, worst {100 * worst:+.1f} % ({where.row}), "
            f"over {len(points)} comparable points"
        )
    return lines

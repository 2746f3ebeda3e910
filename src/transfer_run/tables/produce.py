"""From a table to its cells: plans, finished runs (missing ones carried out), or recorded results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment import registry
from transfer_run.experiment.compose import compose
from transfer_run.experiment.identity import identity
from transfer_run.tables.spec import Column, Row, TableSpec


@dataclass(frozen=True)
class Cell:
    """A cell of the contract: the paper's figure and ours, or why there is none."""

    row: str
    column: str
    unit: str
    paper: float | None
    ours: float | None
    source: str
    identity: str | None
    note: str = ""
    paper_source: str = ""

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        if not self.paper_source:
            del content["paper_source"]
        return content


def produce(spec: TableSpec, source: str, scale: str, say: Callable[[str], None] = print) -> list[Cell]:
    """All cells of a table, row by row.

    Args:
        source: `plan` (memory and parameters without GPU, data or download), `run` (carries out what is missing), or
            `recorded` (what an earlier `run` left under tests/recorded/tables).
        scale: `paper`, or `smoke`: the same code on embedded data and tiny backbones.

    Raises:
        UserError: nothing has been recorded of this table.
    """
    if source == "recorded":
        return _recorded(spec)
    cells = []
    for row in spec.rows:
        for column in spec.columns:
            say(f"{spec.name}: {row.name}, {column.label}")
            cells.append(_cell(spec, row, column, source, scale))
    return cells


def _cell(spec: TableSpec, row: Row, column: Column, source: str, scale: str) -> Cell:
    paper = row.paper.get(column.name)
    recalled = "recalled" if paper is not None and (column.recalled or column.name in row.recalled) else ""
    ours, mark, note = _ours(spec, row, column, source, scale)
    notes = "; ".join(
        n for n in (note, row.note, column.note, "smoke scale" if ours is not None and scale == "smoke" else "") if n
    )
    return Cell(row.name, column.name, column.unit, paper, ours, source, mark, notes, recalled)


def _ours(spec: TableSpec, row: Row, column: Column, source: str, scale: str) -> tuple[float | None, str | None, str]:
    """Our figure, the identity of its run, and why there is none."""
    if column.origin == "none":
        return None, None, "not produced by a run"
    if row.words is None:
        return None, None, row.note or "no run of this project produces it"
    if column.origin == "run" and source == "plan":
        return None, None, "needs --source run"
    words = tuple(spec.cell_words(row, column, scale))
    try:
        produced, mark = _planned(words) if column.origin == "plan" and source == "plan" else _carried_out(words)
    except (UserError, RunFailed) as error:
        return None, None, str(error).splitlines()[0]
    value: Any = produced
    for key in column.value.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None, mark, f"the result has no {column.value}"
        value = value[key]
    return float(value) / column.divide, mark, ""


@cache
def _planned(words: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    from transfer_run.experiment.plan import plan_run

    cfg = compose(list(words))
    plan = plan_run(cfg)
    return {"memory": plan.memory, "parameters": plan.parameters}, identity(cfg)


@cache
def _carried_out(words: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    from transfer_run.experiment.record import read_result
    from transfer_run.experiment.run import carry_out

    cfg = compose(list(words))
    result = read_result(carry_out(cfg, chain=("table",)))
    assert result is not None
    return result, result["identity"]


def recorded_file(name: str) -> Path:
    """Where recorded results of a table stand in the repository."""
    return registry.config_root().parent / "tests" / "recorded" / "tables" / f"{name.replace('/', '_')}.json"


def _recorded(spec: TableSpec) -> list[Cell]:
    path = recorded_file(spec.name)
    if not path.is_file():
        raise UserError(
            f"Nothing has been recorded of table {spec.name}.",
            where=str(path),
            remedy=f"transfer-table {spec.name} --source run, or --source plan",
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Cell(**{**cell, "source": "recorded"}) for cell in content["cells"]]

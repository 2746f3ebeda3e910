"""The score that a table holds for a method on this backbone and this data: ours where it was recorded, else the
paper's, marked as such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transfer_run.experiment.config.composed import Run
from transfer_run.files import read_json
from transfer_run.tables.pages.evidence import tables_of
from transfer_run.tables.spec import Column, Row, TableSpec, recorded_file

GROUPS = ("method", "backbone", "dataset")
EVIDENCE = "evidence/"  # this project's own tables that compare methods as they are


def known_score(run: Run) -> dict[str, Any] | None:
    """`{value, spread, unit, label, table, of}`, `of` being `ours`, `paper` or `recalled` (a paper's figure from
    memory); None where no table has one. Settings other than the three names may differ from the run's. Tables of
    evidence come first; another method's table counts where its row bears this method's name (other rows are that
    method's controls: few steps, random weights, a part of the data)."""
    chosen = {group: str(run.chosen(group)) for group in GROUPS}
    printed = None
    for spec in sorted(tables_of("method", chosen["method"]), key=lambda spec: not spec.name.startswith(EVIDENCE)):
        recorded = _recorded(spec)
        for row in spec.rows:
            if not (spec.name.startswith((EVIDENCE, f"{chosen['method']}/")) or row.name == chosen["method"]):
                continue
            for column in spec.columns:
                if not _is_score(spec, row, column, chosen):
                    continue
                if (row.name, column.name) in recorded:
                    cell = recorded[row.name, column.name]
                    return _said(spec, column, cell["ours"], "ours", cell.get("spread"))
                figure = row.paper.get(column.name)
                if printed is None and figure is not None:
                    recalled = column.recalled or column.name in row.recalled
                    printed = _said(spec, column, figure, "recalled" if recalled else "paper", None)
    return printed


def _is_score(spec: TableSpec, row: Row, column: Column, chosen: Mapping[str, str]) -> bool:
    score = column.value == "score" or column.value.startswith("metrics.test/")
    if row.words is None or column.origin != "run" or not score:
        return False
    words = dict(word.partition("=")[::2] for word in spec.cell_words(row, column, "paper"))
    return all(words.get(group) == name for group, name in chosen.items())


def _recorded(spec: TableSpec) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Our figures of a table, by row and column; none at smoke scale."""
    path = recorded_file(spec.name)
    if not path.is_file():
        return {}
    content = read_json(path, "record the table again")
    if content.get("scale") == "smoke":
        return {}
    return {(cell["row"], cell["column"]): cell for cell in content["cells"] if cell.get("ours") is not None}


def _said(spec: TableSpec, column: Column, value: float, of: str, spread: float | None) -> dict[str, Any]:
    return {
        "value": value, "spread": spread, "unit": column.unit, "label": column.label, "table": spec.name, "of": of,
    }  # fmt: skip

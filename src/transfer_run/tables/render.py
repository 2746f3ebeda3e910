"""A table's cells as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from transfer_run.tables.produce import NOT_OURS, SMOKE, Cell, of_smoke_scale, summary
from transfer_run.tables.sheet import Group, Sheet, figure, in_markdown
from transfer_run.tables.smoke import smoke_sheet
from transfer_run.tables.spec import Column, TableSpec

MARKS = {"recalled": "*", "derived": "~"}
MEANING = {
    "recalled": "the paper's figure is recalled, not read in the paper",
    "derived": "computed from figures that the paper prints (a mean, a GPU's share of a sum), not printed itself",
}


def as_json(spec: TableSpec, cells: Sequence[Cell]) -> str:
    """The JSON of the contract; `scale` stands beside it when the cells are of the smoke scale."""
    content = {"table": spec.name, "cells": [c.to_json() for c in cells]}
    if of_smoke_scale(cells):
        content["scale"] = "smoke"
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_csv(cells: Sequence[Cell]) -> str:
    """One line a cell; at smoke scale without the paper's figures, which stand for another scale."""
    smoke = of_smoke_scale(cells)
    text = io.StringIO()
    names = ["row", "column", "unit", "paper", "ours", "source", "identity", "paper_source", "counter", "compared"]
    names += ["spread", "seeds"] * any(cell.seeds for cell in cells)
    writer = csv.DictWriter(text, [*names, "note"], lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        line = {"paper_source": "", "counter": "", "compared": True, **cell.to_json()}
        writer.writerow({**line, "paper": None, "paper_source": ""} if smoke else line)
    return text.getvalue()


def as_markdown(spec: TableSpec, cells: Sequence[Cell]) -> str:
    """The table as Markdown, whole: paper beside ours, why ours is missing (`-`) below, or what ran at smoke scale."""
    return in_markdown(sheet(spec, cells))


def sheet(spec: TableSpec, cells: Sequence[Cell]) -> Sheet:
    """What is shown of a table, whatever it is shown as; the summary of differences comes last.

    At smoke scale neither the paper's figures nor ours are shown: they would look as if they could be compared.
    """
    if of_smoke_scale(cells):
        return smoke_sheet(spec, cells, _notes((), cells, [cell for cell in cells if cell.ours is None]))
    by_place = {(cell.row, cell.column): cell for cell in cells}
    shown = [(column, _parts(column, cells)) for column in spec.columns if _any_figure(column, cells)]
    own_units = any(row.unit for row in spec.rows)
    alone = all(cell.paper is None for cell in cells)  # no paper's figures: nothing is ours as against theirs
    groups = [Group("row")]
    for column, parts in shown:
        unit = "" if own_units and column.origin == "plan" else f" ({column.unit})"
        groups.append(Group(f"{column.label}{unit}", () if alone else tuple(parts)))
    groups += [Group(name) for name in ("unit", "counter", "compared")] if own_units else []
    rows = []
    for row in spec.rows if shown else ():
        fields = [row.name]
        for column, parts in shown:
            fields += _fields(by_place[row.name, column.name], parts)
        if own_units:
            fields += [row.unit, row.counter, "yes" if row.compared and row.words is not None else "no"]
        rows.append(fields)
    notes = [*_marks(cells), *_notes(spec.notes, cells, cells)]
    return Sheet(f"{spec.name}: {spec.title}", "", groups, rows, notes, summary(spec, cells))


def _any_figure(column: Column, cells: Sequence[Cell]) -> bool:
    return any(cell.column == column.name and (cell.paper is not None or cell.ours is not None) for cell in cells)


def _parts(column: Column, cells: Sequence[Cell]) -> list[str]:
    """Fields of a column: the paper's figure always or ours alone; ours and the difference where there are any."""
    here = [cell for cell in cells if cell.column == column.name]
    parts = ["paper"] if any(cell.paper is not None for cell in here) else []
    parts += ["ours"] if any(cell.ours is not None for cell in here) else []
    return [*parts, *(["difference"] if any(cell.difference is not None for cell in here) else [])]


def _fields(cell: Cell, parts: Sequence[str]) -> list[str]:
    of = {
        "paper": figure(cell.paper) + MARKS.get(cell.paper_source, ""),
        "ours": _with_spread(cell) or "-",
        "difference": "" if cell.difference is None else f"{100 * cell.difference:+.1f} %",
    }
    return [of[part] for part in parts]


def _with_spread(cell: Cell) -> str:
    """Our figure, and its standard deviation over seeds where they differ: 92.3 ± 0.41."""
    return figure(cell.ours) + (f" ± {cell.spread:.2g}" if cell.spread else "")


def _marks(cells: Sequence[Cell]) -> list[str]:
    return [f"{mark} {MEANING[of]}" for of, mark in MARKS.items() if any(cell.paper_source == of for cell in cells)]


def _notes(own: Sequence[str], cells: Sequence[Cell], told: Sequence[Cell]) -> list[str]:
    """The table's own notes, then why cells are blank and what else is to be said of these of them."""
    notes = list(own)
    reasons: dict[str, list[str]] = {}
    for cell in told:
        for reason in filter(None, cell.note.removeprefix(NOT_OURS).split("; ")):
            if reason != SMOKE:
                reasons.setdefault(reason, []).append(f"{cell.row}/{cell.column}")
    for reason, keys in reasons.items():
        notes.append(f"{reason}: {_in_short(keys, cells)}")
    return notes


def _in_short(keys: Sequence[str], cells: Sequence[Cell]) -> str:
    """Which cells: all, whole rows, or the first few by name."""
    if len(keys) == len(cells):
        return "all cells"
    width = len({cell.column for cell in cells})
    rows = list(dict.fromkeys(key.rpartition("/")[0] for key in keys))
    names = rows if len(rows) * width == len(keys) else list(keys)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

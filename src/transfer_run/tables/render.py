"""A table's cells as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from transfer_run.tables.produce import NOT_OURS, SMOKE, Cell, summary
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


def of_smoke_scale(cells: Sequence[Cell]) -> bool:
    """Were the cells made on embedded data and tiny backbones?"""
    return any(SMOKE in cell.note for cell in cells)


def as_csv(cells: Sequence[Cell]) -> str:
    """One line a cell."""
    text = io.StringIO()
    names = ["row", "column", "unit", "paper", "ours", "source", "identity", "paper_source", "counter", "compared"]
    writer = csv.DictWriter(text, [*names, "note"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"paper_source": "", "counter": "", "compared": True, **cell.to_json()} for cell in cells)
    return text.getvalue()


def figure(value: float | None) -> str:
    """Four significant digits, whole numbers whole; nothing for a missing figure."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10000 and value == int(value) else f"{value:.4g}"


def as_markdown(spec: TableSpec, cells: Sequence[Cell]) -> str:
    """Paper beside ours; why ours is missing (`-`) stands below, the summary of differences last."""
    by_place = {(cell.row, cell.column): cell for cell in cells}
    shown = [(column, _parts(column, cells)) for column in spec.columns if _any_figure(column, cells)]
    own_units = any(row.unit for row in spec.rows)
    head = ["row"]
    for column, parts in shown:
        unit = "" if own_units and column.origin == "plan" else f" ({column.unit})"
        head += [f"{column.label}{unit}, {parts[0]}", *parts[1:]]
    head += ["unit", "counter", "compared"] if own_units else []
    title = f"{spec.title} [SMOKE SCALE: embedded data, tiny backbones]" if of_smoke_scale(cells) else spec.title
    lines = [f"## {spec.name}: {title}", ""]
    if shown:
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in spec.rows if shown else ():
        fields = [row.name]
        for column, parts in shown:
            fields += _fields(by_place[row.name, column.name], parts)
        if own_units:
            fields += [row.unit, row.counter, "yes" if row.compared and row.words is not None else "no"]
        lines.append(f"| {' | '.join(fields)} |")
    lines += [*([""] if shown else []), *(f"- {note}" for note in _notes(spec, cells))]
    lines += ["", *summary(spec, cells)]
    return "\n".join(lines).rstrip() + "\n"


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
        "ours": figure(cell.ours) or "-",
        "difference": "" if cell.difference is None else f"{100 * cell.difference:+.1f} %",
    }
    return [of[part] for part in parts]


def _notes(spec: TableSpec, cells: Sequence[Cell]) -> list[str]:
    notes = list(spec.notes)
    notes += [f"{mark} {MEANING[of]}" for of, mark in MARKS.items() if any(cell.paper_source == of for cell in cells)]
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        for reason in filter(None, cell.note.removeprefix(NOT_OURS).split("; ")):
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

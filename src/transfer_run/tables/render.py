"""A table's cells as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from transfer_run.tables.produce import Cell
from transfer_run.tables.spec import TableSpec

RECALLED = "*"


def as_json(spec: TableSpec, cells: Sequence[Cell]) -> str:
    """The JSON of the contract."""
    return json.dumps({"table": spec.name, "cells": [c.to_json() for c in cells]}, indent=1, ensure_ascii=False) + "\n"


def as_csv(cells: Sequence[Cell]) -> str:
    """One line a cell."""
    text = io.StringIO()
    names = ["row", "column", "unit", "paper", "ours", "source", "identity", "paper_source", "note"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"paper_source": "", **cell.to_json()} for cell in cells)
    return text.getvalue()


def figure(value: float | None) -> str:
    """Four significant digits; nothing for a missing figure."""
    return "" if value is None else f"{value:.4g}"


def as_markdown(spec: TableSpec, cells: Sequence[Cell]) -> str:
    """Paper beside ours with the difference, a column each; what is missing and why below."""
    shown = [
        c
        for c in spec.columns
        if any(x.column == c.name and (x.paper is not None or x.ours is not None) for x in cells)
    ]
    head = ["row"]
    for column in shown:
        head += [f"{column.label} ({column.unit}), paper", "ours", "difference"]
    lines = [f"## {spec.name}: {spec.title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    by_place = {(cell.row, cell.column): cell for cell in cells}
    for row in spec.rows:
        fields = [row.name]
        for column in shown:
            fields += _fields(by_place[row.name, column.name])
        lines.append(f"| {' | '.join(fields)} |")
    lines += ["", *(f"- {note}" for note in _notes(spec, cells))]
    return "\n".join(lines).rstrip() + "\n"


def _fields(cell: Cell) -> list[str]:
    paper = figure(cell.paper) + (RECALLED if cell.paper_source == "recalled" else "")
    difference = "" if cell.paper in (None, 0) or cell.ours is None else f"{100 * (cell.ours / cell.paper - 1):+.1f} %"
    return [paper, figure(cell.ours), difference]


def _notes(spec: TableSpec, cells: Sequence[Cell]) -> list[str]:
    notes = list(spec.notes)
    if any(cell.paper_source == "recalled" for cell in cells):
        notes.append(f"{RECALLED} the paper's figure is recalled, not read in the paper")
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.note:
            reasons.setdefault(cell.note, []).append(f"{cell.row}/{cell.column}")
    for reason, places in reasons.items():
        where = ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
        notes.append(f"{reason}: {where}")
    return notes


def picture(spec: TableSpec, cells: Sequence[Cell], path: Path) -> None:
    """Ours and the paper's points: `picture.y` against `picture.x` of the table, or bars of the first column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_place = {(cell.row, cell.column): cell for cell in cells}
    labels = {column.name: f"{column.label} ({column.unit})" for column in spec.columns}
    axes_of = spec.picture or {"x": spec.columns[0].name}
    x, y = axes_of["x"], axes_of.get("y")
    chart, axis = plt.subplots(figsize=(8, max(4.2, 0.32 * len(spec.rows) + 1.5)))
    pairs = [(row.name, by_place[row.name, x], by_place[row.name, y] if y else None) for row in spec.rows]
    if y and any(b is not None and (b.paper is not None or b.ours is not None) for _, _, b in pairs):
        _scatter(axis, pairs)
        axis.set(xlabel=labels[x], ylabel=labels[y])
    else:
        _bars(axis, [(name, a) for name, a, _ in pairs])
        axis.set_xlabel(labels[x])
    axis.set_title(spec.title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    chart.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=130)
    plt.close(chart)


def _scatter(axis, pairs: Sequence[tuple[str, Cell, Cell | None]]) -> None:  # type: ignore[no-untyped-def]
    """Hollow: the paper; full: ours (on the paper's score where we have none of our own)."""
    for name, a, b in pairs:
        assert b is not None
        height = b.ours if b.ours is not None else b.paper
        if a.paper is not None and b.paper is not None:
            axis.scatter(a.paper, b.paper, facecolors="none", edgecolors="C0", s=60, label="paper")
            axis.annotate(name, (a.paper, b.paper), xytext=(5, 5), textcoords="offset points", fontsize=8)
        if a.ours is not None and height is not None:
            axis.scatter(
                a.ours, height, color="C1", s=30, label="ours" if b.ours is not None else "ours (score: paper)"
            )
    handles, names = axis.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axis.legend(unique.values(), unique.keys())


def _bars(axis, pairs: Sequence[tuple[str, Cell]]) -> None:  # type: ignore[no-untyped-def]
    places = range(len(pairs))
    axis.barh([p - 0.2 for p in places], [c.paper or 0 for _, c in pairs], 0.38, label="paper", color="C0", alpha=0.6)
    axis.barh([p + 0.2 for p in places], [c.ours or 0 for _, c in pairs], 0.38, label="ours", color="C1")
    axis.set_yticks(list(places), [name for name, _ in pairs], fontsize=8)
    axis.invert_yaxis()

"""A paper's table as a page: its rows, ours and the paper's scores against memory with the Pareto front, or bars."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_run.tables.html.charts import Point, scatter, stacked
from transfer_run.tables.html.page import Html, document, notes, section, table
from transfer_run.tables.produce import Cell, of_smoke_scale
from transfer_run.tables.render import sheet
from transfer_run.tables.sheet import Sheet, figure
from transfer_run.tables.spec import Column, TableSpec

SIDES = ("paper", "ours")


def table_page(spec: TableSpec, cells: Sequence[Cell]) -> str:
    """The page of a table; at smoke scale it says what ran, and draws nothing."""
    shown = sheet(spec, cells)
    return document(shown.title, shown.intro, [
        *([] if of_smoke_scale(cells) else [_picture(spec, cells)]),
        section("Rows", _rows(shown)),
        section("Differences" if not of_smoke_scale(cells) else "In short", notes(shown.summary)),
        section("Notes", notes(shown.notes)),
    ])  # fmt: skip


def _rows(shown: Sheet) -> Html:
    head = [", ".join(filter(None, (group.heading, part))) for group in shown.groups for part in group.parts or ("",)]
    return table(head, shown.rows)


def _picture(spec: TableSpec, cells: Sequence[Cell]) -> Html:
    """Points where the table's file names two axes, and bars of its first column with figures otherwise."""
    chosen = spec.picture or {}
    columns = {column.name: column for column in spec.columns}
    if {"x", "y"} <= set(chosen):
        return _points(spec, cells, columns[chosen["x"]], columns[chosen["y"]])
    filled = {cell.column for cell in cells if cell.paper is not None or cell.ours is not None}
    named = [name for words in chosen.values() for name in words.split()] or [c.name for c in spec.columns][:1]
    drawn = [_bars(columns[name], cells) for name in named if name in filled]
    return section("Picture", *drawn)


def _points(spec: TableSpec, cells: Sequence[Cell], x: Column, y: Column) -> Html:
    """Hollow: the paper; full: ours. Where we have no score ours stands at the paper's, and counts for no front."""
    of = {(cell.row, cell.column): cell for cell in cells}
    points: list[Point] = []
    own = sum(of[row.name, y.name].ours is not None and of[row.name, x.name].ours is not None for row in spec.rows) > 1
    for number, row in enumerate(spec.rows):
        a, b = of[row.name, x.name], of[row.name, y.name]
        height = b.ours if b.ours is not None else b.paper
        if a.ours is not None and height is not None:
            where = "ours" if b.ours is not None else "our memory at the paper's score"
            said = f"{row.name}, {where}: {figure(a.ours)}, {figure(height)}"
            points.append(Point(a.ours, height, row.name, number, said, counted=own and b.ours is not None))
        if a.paper is not None and b.paper is not None:
            said = f"{row.name}, paper: {figure(a.paper)}, {figure(b.paper)}"
            points.append(Point(a.paper, b.paper, row.name, number, said, hollow=True, counted=not own))
    if not points:
        return Html("")
    of_whom = "ours" if own else "the paper's"
    said = f"Full points are ours, hollow ones the paper's; the dashed line is the Pareto front of {of_whom}."
    drawn = scatter(points, f"{x.label} ({x.unit})", f"{y.label} ({y.unit})", y.better == "large")
    return section(f"{y.label} against {x.label}", drawn, said)


def _bars(column: Column, cells: Sequence[Cell]) -> Html:
    rows: list[tuple[str, dict[str, float]]] = []
    for cell in (each for each in cells if each.column == column.name):
        rows += [(f"{cell.row}, paper", {"paper": cell.paper})] if cell.paper is not None else []
        rows += [(f"{cell.row}, ours", {"ours": cell.ours})] if cell.ours is not None else []
    return stacked(rows, SIDES, f"{column.label} ({column.unit})" if column.unit else column.label, figure)

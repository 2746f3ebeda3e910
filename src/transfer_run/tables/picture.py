"""A table's picture: scores against memory, the paper's points hollow and ours full; bars where there is one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfer_run.tables.produce import Cell, of_smoke_scale
from transfer_run.tables.sheet import figure
from transfer_run.tables.spec import TableSpec

PAPER, OURS = "C0", "C1"
Point = tuple[float, float]
TALLEST = 40
"""Rows of a bar chart that still can be read; of more, those with both figures are drawn."""


def picture(spec: TableSpec, cells: Sequence[Cell], path: Path) -> None:
    """Draw the table: `picture.y` against `picture.x` of its file, or bars of `x` (default: its first figures).

    Args:
        path: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if of_smoke_scale(cells):  # nothing to hold beside the paper's
        cells = [replace(cell, paper=None) for cell in cells]
    draw = {"panels": _panels, "against": _against}.get(next(iter(spec.picture or {}), ""), _chart)
    chart = draw(plt, spec, cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=130)
    plt.close(chart)


def _chart(plt: Any, spec: TableSpec, cells: Sequence[Cell]) -> Any:
    """Points where two columns have figures, bars of one column otherwise."""
    x, y = _axes(spec, cells)
    by_place = {(cell.row, cell.column): cell for cell in cells}
    triples = [(row.name, by_place.get((row.name, x)), by_place.get((row.name, y))) for row in spec.rows]
    own = any(row.unit for row in spec.rows)
    labels = {column.name: _label(column.label, "unit of the row" if own else column.unit) for column in spec.columns}
    points = [(name, a, b) for name, a, b in triples if a and b and _height(b) is not None and _any(a)]
    bars = [(name, a) for name, a, _ in triples if a is not None and _any(a)]
    if len(bars) > TALLEST:
        bars = ([(name, a) for name, a in bars if a.paper is not None and a.ours is not None] or bars)[:TALLEST]
    chart, axis = plt.subplots(figsize=(8.5, 5.2 if points else max(2.4, 0.36 * len(bars) + 1.6)))
    named = _scatter(axis, points) if points else []
    if points:
        axis.set(xlabel=labels[x], ylabel=labels[y])
    elif bars:
        _bars(axis, bars)
        axis.set_xlabel(labels[x])
    else:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no figure could be sourced or produced", ha="center", va="center")
    axis.set_title(_title(spec, cells), fontsize=10)
    chart.tight_layout()
    name_points(axis, named)
    return chart


def _panels(plt: Any, spec: TableSpec, cells: Sequence[Cell]) -> Any:
    """Bars of several columns side by side, a row of the table in the same place in each."""
    columns = [next(c for c in spec.columns if c.name == name) for name in (spec.picture or {})["panels"].split()]
    by_place = {(cell.row, cell.column): cell for cell in cells}
    size = (4.2 * len(columns), max(2.6, 0.4 * len(spec.rows) + 1.4))
    chart, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        _bars(axis, [(row.name, by_place[row.name, column.name]) for row in spec.rows])
        axis.set_title(_label(column.label, column.unit), fontsize=9)
        axis.get_legend().remove()
    axes[0][0].set_ylim(len(spec.rows) - 0.5, -0.5)  # shared axes were turned over once each
    chart.suptitle(_title(spec, cells), fontsize=10)
    chart.tight_layout()
    return chart


def _against(plt: Any, spec: TableSpec, cells: Sequence[Cell]) -> Any:
    """Our memory over the paper's, in GiB whatever the row's unit; comparable points full, a colour a group of rows."""
    column = next(c for c in spec.columns if c.name == (spec.picture or {})["against"])
    gib = {row.name: (column.divide if row.divide is None else row.divide) / 2**30 for row in spec.rows}
    here = [c for c in cells if c.column == column.name and c.difference is not None]
    chart, axis = plt.subplots(figsize=(9.5, 5.6))
    for number, group in enumerate(dict.fromkeys(cell.row.partition(":")[0] for cell in here)):
        for compared in (True, False):
            part = [c for c in here if c.row.partition(":")[0] == group and c.compared == compared]
            x, y = [(c.paper or 0) * gib[c.row] for c in part], [(c.ours or 0) * gib[c.row] for c in part]
            look = {"facecolors": f"C{number}" if compared else "white", "edgecolors": f"C{number}"}
            axis.scatter(
                x, y, s=40, label=None if not part else group if compared else f"{group}, no comparison", **look
            )
    end = 1.05 * max((value * gib[c.row] for c in here for value in (c.paper, c.ours) if value), default=1)
    axis.plot([0, end], [0, end], color="0.6", linewidth=1, zorder=0)
    axis.set(xlabel=f"{column.label}, published (GiB)", ylabel="planned (GiB)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axis.grid(alpha=0.3)
    axis.set_title(_title(spec, cells), fontsize=10)
    chart.tight_layout()
    return chart


def _title(spec: TableSpec, cells: Sequence[Cell]) -> str:
    smoke = "\nsmoke scale: embedded data, tiny backbones" if of_smoke_scale(cells) else ""
    return _wrapped(spec.title) + smoke


def _axes(spec: TableSpec, cells: Sequence[Cell]) -> tuple[str, str]:
    chosen = dict(spec.picture or {})
    filled = [column.name for column in spec.columns if any(c.column == column.name and _any(c) for c in cells)]
    return chosen.get("x", filled[0] if filled else ""), chosen.get("y", "")


def _label(label: str, unit: str) -> str:
    return f"{label} ({unit})" if unit else label


def _wrapped(text: str, width: int = 88) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _any(cell: Cell) -> bool:
    return cell.paper is not None or cell.ours is not None


def _height(cell: Cell) -> float | None:
    """Where our point stands: on our score, or on the paper's where we have none."""
    return cell.ours if cell.ours is not None else cell.paper


def _scatter(axis: Any, points: Sequence[tuple[str, Cell, Cell]]) -> list[tuple[str, list[Point]]]:
    """Hollow: the paper; full: ours, joined by a line. Returns each row's name with its points."""
    named = []
    for name, a, b in points:
        hollow = (a.paper, b.paper) if a.paper is not None and b.paper is not None else None
        height = _height(b)
        full = (a.ours, height) if a.ours is not None and height is not None else None
        if hollow and full:
            axis.plot(*zip(hollow, full, strict=True), color="0.75", linewidth=1, zorder=1)
        if hollow:
            axis.scatter(*hollow, facecolors="white", edgecolors=PAPER, s=64, linewidths=1.6, zorder=2, label="paper")
        if full:
            label = "ours" if b.ours is not None else "ours, at the paper's score"
            axis.scatter(*full, color=OURS, s=34, zorder=3, label=label)
        named.append((name, [place for place in (full, hollow) if place is not None]))
    axis.margins(x=0.16, y=0.16)
    places = [x for _, here in named for x, _ in here]
    if max(places) - min(places) < 0.05 * max(places):  # nearly equal: no axis that makes much of it
        axis.set_xlim(0, 1.3 * max(places))
    axis.grid(alpha=0.3)
    handles, names = axis.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    return named


def name_points(axis: Any, named: Sequence[tuple[str, Sequence[Point]]]) -> None:
    """Each row's name near its points, at the first place where it covers no other name and no point."""
    from matplotlib.transforms import Bbox

    axis.figure.canvas.draw()
    renderer = axis.figure.canvas.get_renderer()
    taken = [_around(axis, places) for _, places in named]
    for (name, places), mine in sorted(zip(named, list(taken), strict=True), key=lambda pair: pair[1].y0):
        middle = ((mine.x0 + mine.x1) / 2, (mine.y0 + mine.y1) / 2)
        options: list[tuple[float, int, Any, str, Any]] = []
        for dx, dy, side in _offsets(mine.width / 2, axis.figure.dpi / 72):
            place = axis.transData.inverted().transform((middle[0] + dx, middle[1] + dy))
            text = axis.text(*place, name, fontsize=8, ha=side, va="center")
            box = text.get_window_extent(renderer)
            text.remove()
            inside = axis.bbox.x0 < box.x0 and box.x1 < axis.bbox.x1 and axis.bbox.y0 < box.y0 and box.y1 < axis.bbox.y1
            covered = sum(_shared(box, other) for other in taken) + (0 if inside else 1e6)
            options.append((covered, len(options), place, side, box))
            if not covered:
                break
        _, tried, place, side, box = min(options, key=lambda option: option[:2])
        axis.text(*place, name, fontsize=8, ha=side, va="center", zorder=4)
        if tried >= 8:  # far away: a thin line leads back
            axis.plot(*zip(place, places[0], strict=True), color="0.5", linewidth=0.5, zorder=1)
        taken.append(Bbox.from_extents(box.x0, box.y0, box.x1, box.y1))


def _offsets(half: float, point: float) -> Iterator[tuple[float, float, str]]:
    """Above, below, right and left of points `half` wide, then ever farther; in pixels."""
    for distance in (0, 11, 22, 34, 48, 64, 80):
        up = (13 + distance) * point
        yield 0, up, "center"
        yield 0, -up, "center"
        for sign in (1, -1):
            yield half + 3 * point, sign * distance * point, "left"
            yield -half - 3 * point, sign * distance * point, "right"


def _around(axis: Any, places: Sequence[Point], radius: float = 9) -> Any:
    """The box around a row's points and the line between them, in pixels."""
    from matplotlib.transforms import Bbox

    pixels = axis.transData.transform(list(places))
    return Bbox([pixels.min(axis=0) - radius, pixels.max(axis=0) + radius])


def _shared(box: Any, other: Any) -> float:
    """How much of two boxes lies over each other, in square pixels."""
    wide, high = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
    return float(wide * high) if wide > 0 and high > 0 else 0.0


def _bars(axis: Any, pairs: Sequence[tuple[str, Cell]]) -> None:
    """Paper over ours, a pair of bars a row (one bar where all are of one side), with the figures at their ends."""
    from matplotlib.ticker import MaxNLocator

    sides = [("paper", PAPER, [cell.paper for _, cell in pairs]), ("ours", OURS, [cell.ours for _, cell in pairs])]
    sides = [side for side in sides if any(value is not None for value in side[2])]
    width = 0.76 / max(1, len(sides))
    for number, (label, color, values) in enumerate(sides):
        places = [place + (number - (len(sides) - 1) / 2) * width for place in range(len(pairs))]
        bars = axis.barh(places, [value or 0 for value in values], width, label=label, color=color, alpha=0.8)
        axis.bar_label(bars, [figure(value) for value in values], fontsize=7, padding=2)
    heights = [value for _, _, values in sides for value in values if value]
    if heights and min(heights) > 0 and max(heights) > 100 * min(heights):
        axis.set_xscale("log")
    elif heights and max(heights) >= 1e5:
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_yticks(range(len(pairs)), [name for name, _ in pairs], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.18, y=0.4 / max(4, len(pairs)))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))

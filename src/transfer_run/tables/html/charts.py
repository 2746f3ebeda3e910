"""Charts as inline SVG: lines, stacked bars, points. Every mark tells its figures to a pointer that rests on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transfer_run.tables.html.page import COLOURS, Html, legend, text

WIDE, HIGH = 540, 290
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 14, 46
LETTER = 6.6
"""Pixels that a letter is wide, more or less."""
Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A mark of `scatter`; `series` gives its colour, `label` stands beside it, `says` is told on it, and the front is
    of those that are `counted`."""

    x: float
    y: float
    label: str
    series: int = 0
    says: str = ""
    hollow: bool = False
    counted: bool = True


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * count >= span * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A figure for an axis or a mark."""
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


class _Axes:
    """Where values stand in the picture; `low` and `high` of each axis are widened to show what lies at the ends."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, zero_x: bool = False, room: float = 0.06) -> None:
        self.x0, self.x1 = _ends(xs, room, zero_x)
        self.y0, self.y1 = _ends(ys, room, False)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDE - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HIGH - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HIGH - TOP - BOTTOM)

    def drawn(self, x_label: str, y_label: str) -> list[str]:
        lines = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            lines.append(f'<line class="rule" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text class="faint" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        for value in ticks(self.x0, self.x1):
            x = self.x(value)
            lines.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HIGH - BOTTOM}"/>')
            lines.append(
                f'<text class="faint" x="{x:.1f}" y="{HIGH - BOTTOM + 18}" text-anchor="middle">{number(value)}</text>'
            )
        middle = (LEFT + WIDE - RIGHT) / 2
        lines.append(f'<text x="{middle:.0f}" y="{HIGH - 8}" text-anchor="middle">{text(x_label)}</text>')
        place = (TOP + HIGH - BOTTOM) / 2
        lines.append(
            f'<text transform="translate(14 {place:.0f}) rotate(-90)" text-anchor="middle">{text(y_label)}</text>'
        )
        return lines


def _ends(values: Sequence[float], room: float, zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = min(low, 0.0) if zero else low
    more = room * ((high - low) or abs(high) or 1.0)
    return (low if zero else low - more), high + more


def _svg(lines: Sequence[str], wide: float, high: float, says: str) -> str:
    return (f'<svg viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" role="img" aria-label="{text(says)}">'
            + "".join(lines) + "</svg>")  # fmt: skip


def lines(series: Mapping[str, Pairs], x_label: str, y_label: str) -> Html:
    """A line for each series of (x, y); one value alone is a dot. What is no finite number is left out, and said."""
    kept = {name: [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)] for name, pairs in series.items()}
    lost = sum(len(pairs) for pairs in series.values()) - sum(map(len, kept.values()))
    kept = {name: pairs for name, pairs in kept.items() if pairs}
    if not kept:
        return Html("")
    axes = _Axes([x for pairs in kept.values() for x, _ in pairs], [y for pairs in kept.values() for _, y in pairs])
    drawn = axes.drawn(x_label, y_label)
    for place, (name, pairs) in enumerate(kept.items()):
        colour = _colour(place)
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in pairs)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        size = 3.4 if len(pairs) <= 40 else 1.8
        for x, y in pairs:
            told = f"{name}: {number(y)} at {x_label} {number(x)}"
            drawn.append(f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="{size}" fill="{colour}">'
                         f"<title>{text(told)}</title></circle>")  # fmt: skip
    said = f'<p class="faint">{lost} values that are no finite number are not drawn.</p>' if lost else ""
    picture = _svg(drawn, WIDE, HIGH, f"{y_label} by {x_label}")
    return Html(f"<figure><h3>{text(y_label)}</h3>{picture}{legend(list(kept))}{said}</figure>")


def stacked(
    rows: Sequence[tuple[str, Mapping[str, float]]], parts: Sequence[str], unit: str, shown: Callable[[float], str]
) -> Html:
    """A horizontal bar a row, made of its parts; the sum stands at its end.

    Args:
        parts: the names of all parts, in the order of their colours.
        unit: what the axis counts.
        shown: a value for people.
    """
    if not rows:
        return Html("")
    left = 20 + LETTER * max(len(name) for name, _ in rows)
    wide, bar, gap = 820.0, 17, 8
    high = len(rows) * (bar + gap) + 40
    most = max(sum(values.values()) for _, values in rows) or 1.0
    scale = (wide - left - 90) / most
    drawn = []
    for value in ticks(0, most):
        x = left + value * scale
        drawn.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{high - 36}"/>')
        drawn.append(f'<text class="faint" x="{x:.1f}" y="{high - 20}" text-anchor="middle">{number(value)}</text>')
    drawn.append(f'<text x="{(left + wide - 90) / 2:.0f}" y="{high - 4}" text-anchor="middle">{text(unit)}</text>')
    for place, (name, values) in enumerate(rows):
        y, x = 6 + place * (bar + gap), left
        drawn.append(f'<text x="{left - 8:.1f}" y="{y + 13}" text-anchor="end">{text(name)}</text>')
        for part in (each for each in parts if values.get(each)):
            long, told = values[part] * scale, text(f"{name}, {part}: {shown(values[part])}")
            drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{max(long, 0.5):.1f}" height="{bar}" '
                         f'fill="{_colour(parts.index(part))}"><title>{told}</title></rect>')  # fmt: skip
            x += long
        drawn.append(f'<text x="{x + 6:.1f}" y="{y + 13}">{text(shown(sum(values.values())))}</text>')
    used = [part for part in parts if any(values.get(part) for _, values in rows)]
    keys = "".join(
        f'<span class="key" style="background: var(--c{parts.index(part) % COLOURS})"></span>{text(part)}'
        for part in used
    )
    return Html(f"<figure>{_svg(drawn, wide, high, f'bars in {unit}')}<figcaption>{keys}</figcaption></figure>")


def front(points: Sequence[Point], large: bool) -> list[Point]:
    """The points of which no other needs at most as much (x) and reaches at least as much (y), by x.

    Args:
        large: is a large y the better one?
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y if large else p.y)):
        if not best or (point.y > best[-1].y if large else point.y < best[-1].y):
            best.append(point)
    return best


def scatter(points: Sequence[Point], x_label: str, y_label: str, large: bool | None = None) -> Html:
    """Points with names; those of one series have one colour.

    Args:
        large: draws the front of the best for their x: is a large y the better one? None: no front.
    """
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        return Html("")
    axes = _Axes([p.x for p in points], [p.y for p in points], zero_x=True, room=0.12)
    drawn = axes.drawn(x_label, y_label)
    if large is not None:
        best = front([point for point in points if point.counted], large)
        steps = [f"M{axes.x(best[0].x):.1f},{axes.y(best[0].y):.1f}"] if best else []
        steps += [f"H{axes.x(point.x):.1f}V{axes.y(point.y):.1f}" for point in best[1:]]
        steps += [f"H{WIDE - RIGHT}"] if best else []
        told = "the Pareto front: nothing else reaches as much with as little"
        drawn.append(f'<path d="{" ".join(steps)}" fill="none" class="axis" stroke-width="1.5" stroke-dasharray="5 4">'
                     f"<title>{told}</title></path>")  # fmt: skip
    for point in points:
        colour = _colour(point.series)
        fill = "var(--ground)" if point.hollow else colour
        drawn.append(f'<circle cx="{axes.x(point.x):.1f}" cy="{axes.y(point.y):.1f}" r="5" fill="{fill}" '
                     f'stroke="{colour}" stroke-width="1.6"><title>{text(point.says or point.label)}</title></circle>'
                    )  # fmt: skip
    drawn += _names(points, axes)
    return Html(f"<figure>{_svg(drawn, WIDE, HIGH, f'{y_label} against {x_label}')}</figure>")


def _names(points: Sequence[Point], axes: _Axes) -> list[str]:
    """Each name once beside the first of its points, where it covers as little as can be."""
    taken = [(axes.x(p.x) - 6, axes.y(p.y) - 6, axes.x(p.x) + 6, axes.y(p.y) + 6) for p in points]
    drawn, named = [], set[str]()
    for point in points:
        if not point.label or point.label in named:
            continue
        named.add(point.label)
        x, y, wide = axes.x(point.x), axes.y(point.y), LETTER * len(point.label)
        right, left, middle = x + 9, x - 9 - wide, x - wide / 2
        places = [(right, y - 7), (right, y + 16), (left, y - 7), (left, y + 16), (middle, y - 10), (middle, y + 20),
                  (left, y + 4), (right, y + 4), (right, y - 22), (right, y + 32)]  # fmt: skip
        boxes = [(at, base - 10, at + wide, base + 3) for at, base in places]
        cost = [
            sum(_covers(box, other) for other in taken) + 100 * (box[0] < LEFT or box[2] > WIDE or box[1] < 0)
            for box in boxes
        ]
        best = cost.index(min(cost))
        taken.append(boxes[best])
        drawn.append(f'<text x="{places[best][0]:.1f}" y="{places[best][1]:.1f}">{text(point.label)}</text>')
    return drawn


def _covers(box: Sequence[float], other: Sequence[float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]

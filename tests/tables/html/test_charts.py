"""Charts: where marks stand, which points are on the front, and that nothing is drawn silently wrong."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest

from transfer_run.tables.html.charts import Point, front, lines, scatter, stacked, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.31), (1e-5, 3e-5), (-3, 17), (0, 123456), (5, 5)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert high == low or 2 <= len(found) <= 11
    steps = {f"{b - a:.6g}" for a, b in itertools.pairwise(found)}
    assert len(steps) <= 1
    assert all(step.replace(".", "").lstrip("0").rstrip("0").partition("e")[0] in ("1", "2", "5") for step in steps)


@pytest.mark.parametrize("large", [True, False])
def test_the_front_is_what_nothing_else_beats(large: bool) -> None:
    points = [Point(random.randint(0, 9), random.randint(0, 9), "") for _ in range(60)]
    sign = 1 if large else -1
    best = front(points, large)
    for point in best:
        better = [
            p for p in points if p.x <= point.x and sign * p.y >= sign * point.y and (p.x, p.y) != (point.x, point.y)
        ]
        assert better == []
    for point in points:
        assert any(p.x <= point.x and sign * p.y >= sign * point.y for p in best)
    assert [p.x for p in best] == sorted({p.x for p in best})


def test_the_front_is_drawn_only_where_the_better_side_is_known() -> None:
    points = [Point(1, 0.5, "a"), Point(2, 0.7, "b"), Point(3, 0.6, "c")]
    assert "Pareto" in scatter(points, "x", "y", True)
    assert "Pareto" not in scatter(points, "x", "y")
    hidden = scatter([Point(1, 0.5, "a", counted=False), *points[1:]], "x", "y", True)
    assert len(re.findall(r"[MH][\d.]+", re.findall(r'<path d="([^"]*)"', hidden)[0])) == 2, "b, and on to the edge"


def test_a_line_stands_where_its_values_are() -> None:
    text = lines({"train/loss": [(0, 4.0), (10, 2.0)], "test/loss": [(10, 3.0)]}, "step", "loss")
    (x0, y0), (x1, y1) = [pair.split(",") for pair in re.findall(r'points="([^" ]+ [^"]+)"', text)[0].split()]
    assert float(x0) < float(x1)
    assert float(y0) < float(y1), "a smaller value is lower"
    middle = re.findall(r'cy="([\d.]+)"', text)[-1]
    assert float(middle) == pytest.approx((float(y0) + float(y1)) / 2, abs=0.11)
    assert "train/loss: 4 at step 0" in text


def test_what_is_no_number_is_left_out_and_said() -> None:
    text = lines({"loss": [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]}, "step", "loss")
    assert "2 values that are no finite number are not drawn" in text
    assert text.count("<circle") == 2
    assert lines({"loss": [(0, math.nan)]}, "step", "loss") == ""
    assert scatter([], "x", "y", True) == ""


def test_bars_are_as_long_as_their_parts() -> None:
    text = stacked([("forward", {"a": 1.0, "b": 3.0}), ("step", {"b": 2.0})], ["a", "b"], "MiB", lambda v: f"{v:g} MiB")
    widths = [float(wide) for wide in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[0], rel=0.01)
    assert "forward, b: 3 MiB" in text
    assert ">4 MiB</text>" in text


def test_names_that_stand_close_do_not_cover_each_other() -> None:
    points = [Point(1, 0.5, "first method"), Point(1.01, 0.5, "second method"), Point(1.0, 0.501, "third method")]
    places = [
        (float(x), float(y))
        for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">\w+ method', scatter(points, "x", "y"))
    ]
    assert len(places) == 3
    for number, (x, y) in enumerate(places):
        for x2, y2 in places[:number]:
            assert abs(y - y2) >= 12 or abs(x - x2) >= 70


def test_what_comes_from_a_run_is_escaped() -> None:
    bad = "<script>alert('x')</script>&\""
    drawn = [scatter([Point(1, 1, bad), Point(2, 2, "b")], bad, bad, True), lines({bad: [(0, 1), (1, 2)]}, bad, bad),
             stacked([(bad, {bad: 1.0})], [bad], bad, lambda value: bad)]  # fmt: skip
    for text in drawn:
        assert "<script" not in text
        assert "&lt;script&gt;" in text

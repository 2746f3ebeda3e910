"""The table of what may be chosen, best first, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from transfer_run.memory.account import KINDS
from transfer_run.memory.report import GIB, MIB, PAPER_GB, amount
from transfer_run.tables.choice.asked import LeftOut
from transfer_run.tables.sheet import figure

Answered = tuple[str, Mapping[str, Any]]
"""A candidate's name and what is told of it (`answer.make`)."""
TALLEST = 40
"""Bars that can still be read in one picture."""


def best_first(answered: Sequence[Answered]) -> list[Answered]:
    """What fits first, then what a change makes fit, then the rest; in each the lowest peak first."""

    def rank(each: Answered) -> tuple[int, int, str]:
        least = each[1].get("least")
        group = 0 if each[1].get("fits", True) else 1 if least is not None and least["fits"] else 2
        return group, int(each[1]["memory"]["peak"]), each[0]

    return sorted(answered, key=rank)


def as_table(answered: Sequence[Answered], title: str, paper: bool = False) -> Table:
    """A line each: does it fit, its peak and what makes it up, the largest batch, trained parameters, work, score."""
    rows = best_first(answered)
    unit, size = _unit(rows, paper)
    asked = any("fits" in content for _, content in rows)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", no_wrap=True)
    if asked:
        table.add_column("fits")
    table.add_column(f"peak, {unit}", justify="right")
    table.add_column("mostly", no_wrap=True)
    if asked:
        table.add_column("batch that fits", justify="right")
    table.add_column("trained %", justify="right")
    table.add_column("TFLOP a step", justify="right")
    scores = any(content.get("score") for _, content in rows)
    if scores:
        table.add_column("known score")
    for name, content in rows:
        peak = content["memory"]["peak"]
        cells = [name, *(["yes" if content["fits"] else "no"] if asked else [])]
        cells += [f"{peak / size:.2f}", _mostly(content["memory"])]
        cells += [str(content["largest_batch"] or "-")] if asked else []
        flops = content["flops"]
        cells += [figure(content["parameters"]["trainable_pct"]), "-" if flops is None else figure(flops / 1e12)]
        table.add_row(*cells, *([_score(content.get("score"))] if scores else []))
    return table


def lines(answered: Sequence[Answered], left: Sequence[LeftOut], paper: bool = False) -> list[str]:
    """What makes those fit that do not, what the marks mean, and what was left out and why."""
    found = []
    for name, content in best_first(answered):
        least = content.get("least")
        if least is not None:
            found.append(f"> {name}: {told(least['words'], least['peak'], least['fits'], paper)}")
    scores = [content["score"] for _, content in answered if content.get("score")]
    if scores:
        tables = ", ".join(dict.fromkeys(score["table"] for score in scores))
        found.append(f"* known scores are those of {tables}; other settings than these runs' may stand behind them")
    if any(content["flops"] is None for _, content in answered):
        found.append("* the work of a step is not counted where a run has no single loss")
    reasons: dict[str, list[str]] = {}
    for each in left:
        reasons.setdefault(each.why, []).append(each.name)
    return found + [f"- left out: {', '.join(names)}: {why}" for why, names in reasons.items()]


def told(words: Sequence[str], peak: int, fits: bool, paper: bool = False) -> str:
    """What the least change is, in words."""
    with_words = " ".join(words)
    if fits:
        return f"fits with {with_words} ({amount(peak, paper)})"
    if not words:
        return "no change that is known here lowers its peak"
    return f"does not fit even with {with_words} ({amount(peak, paper)})"


def as_json(answered: Sequence[Answered], left: Sequence[LeftOut]) -> dict[str, Any]:
    """The same as data, best first; amounts in bytes."""
    return {
        "schema": 1,
        "choices": [{"run": name, **content} for name, content in best_first(answered)],
        "left_out": [{"run": each.name, "why": each.why} for each in left],
    }


def draw(answered: Sequence[Answered], title: str, path: Path, usable: int | None = None) -> int:
    """Bars of the peak by kind, and memory against trained parameters beside them.

    Args:
        path: the PNG to write.
        usable: bytes that may be allocated, a line across both.

    Returns:
        how many are drawn: of more than 40 the first.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from transfer_run.tables.picture import name_points

    rows = best_first(answered)[:TALLEST]
    unit, size = _unit(rows, False)
    chart, (bars, points) = plt.subplots(1, 2, figsize=(14, max(4.0, 0.27 * len(rows) + 1.8)))
    left = [0.0] * len(rows)
    for kind in KINDS:
        widths = [content["memory"]["by_kind"][kind] / size for _, content in rows]
        if any(widths):
            bars.barh(range(len(rows)), widths, left=left, label=kind)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    bars.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    bars.set_xlabel(f"planned peak ({unit})")
    named = []
    for name, content in rows:
        place = (content["memory"]["peak"] / size, max(content["parameters"]["trainable_pct"], 1e-4))
        points.scatter(*place, s=30, color="C0" if content.get("fits", True) else "0.6")
        named.append((name, [place]))
    points.set(yscale="log", xlabel=f"planned peak ({unit})", ylabel="trained parameters (% of all)")
    points.margins(0.12)
    if usable is not None:
        for axis in (bars, points):
            axis.axvline(usable / size, color="C3", linewidth=1, label="usable")
    bars.set_ylim(len(rows) - 0.4, -0.6)
    bars.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=7)
    for axis in (bars, points):
        axis.grid(alpha=0.3)
    chart.suptitle(title, fontsize=10)
    chart.tight_layout()
    if len(named) <= TALLEST // 2:
        name_points(points, named)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=110)
    plt.close(chart)
    return len(rows)


def _unit(rows: Sequence[Answered], paper: bool) -> tuple[str, int]:
    if paper:
        return "GB of 1000 MiB", PAPER_GB
    largest = max((content["memory"]["peak"] for _, content in rows), default=0)
    return ("GiB", GIB) if largest >= GIB / 2 else ("MiB", MIB)


def _mostly(memory: Mapping[str, Any]) -> str:
    """The kind that makes up most of the peak."""
    kinds = memory["by_kind"]
    most = max(KINDS, key=lambda kind: kinds[kind])
    return f"{most} {100 * kinds[most] / max(1, memory['peak']):.0f} %"


def _score(score: Mapping[str, Any] | None) -> str:
    if not score:
        return "-"
    spread = "" if score["spread"] is None else f" ± {figure(score['spread'])}"
    mark = "" if score["of"] == "ours" else f" ({score['of']})"
    return f"{figure(score['value'])}{spread} {score['unit']}{mark}"

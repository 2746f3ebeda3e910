"""What the networks tell: curves over the cut, their differences, a table, the paper's figure."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer_run.files import write_atomically
from transfer_run.methods.transferability.layers.networks import Network

Curves = dict[str, dict[str, dict[str, Any]]]
"""curve -> cut -> mean, std, min, max, networks, values."""


def results_of(accuracies: Mapping[Network, float], pooled: bool) -> dict[str, Any]:
    """Curves, `metrics` (CURVE/CUT, and the differences of the paper) and a table of the networks' accuracies.

    Args:
        pooled: the halves are random: AnB holds A's layers on B and B's on A.
    """
    points: dict[str, dict[int, list[float]]] = {}
    for network, value in accuracies.items():
        points.setdefault(network.curve(pooled), {}).setdefault(network.cut, []).append(value)
    curves: Curves = {
        name: {str(cut): _point(values) for cut, values in sorted(cuts.items())} for name, cuts in points.items()
    }
    metrics = {f"{name}/{cut}": point["mean"] for name, cuts in curves.items() for cut, point in cuts.items()}
    for target in ("B",) if pooled else ("A", "B"):
        metrics |= _differences(curves, target, pooled)
    return {"curves": curves, "metrics": metrics, "table": _table(curves)}


def _point(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values), "std": spread, "min": min(values), "max": max(values),
        "networks": len(values), "values": list(values),
    }  # fmt: skip


def _differences(curves: Curves, target: str, pooled: bool) -> dict[str, float]:
    """What the curves of one target say at each cut, where both of two are there."""
    other, end = "A" if target == "B" else "B", "" if pooled else target
    names = {"base": f"base{end}", "self": f"{target}n{target}", "other": f"{other}n{target}"}
    names |= {"other+": f"{names['other']}+", "self+": f"{names['self']}+"}
    pairs = {
        "coadaptation": ("base", "self"), "specificity": ("self", "other"), "boost": ("other+", "base"),
        "boost_over_self": ("other+", "self+"),
    }  # fmt: skip
    found: dict[str, float] = {}
    cuts = sorted({cut for name in names.values() for cut in curves.get(name, {}) if cut != "0"}, key=int)
    for word, (more, less) in pairs.items():
        ends = [
            {cut: curves.get(names[key], {}).get("0" if key == "base" else cut) for cut in cuts} for key in (more, less)
        ]
        differences = {cut: a["mean"] - b["mean"] for cut in cuts if (a := ends[0][cut]) and (b := ends[1][cut])}
        key = word if pooled else f"{word}_{target}"
        found |= {f"{key}/{cut}": value for cut, value in differences.items()}
        if differences:
            found[f"{key}/mean"] = statistics.fmean(differences.values())
    return found


def _table(curves: Curves) -> list[str]:
    """One line a curve: accuracies in per cent at each cut, plus or minus the spread over networks."""
    cuts = sorted({int(cut) for points in curves.values() for cut in points})
    lines = [f"{'n':>8} " + " ".join(f"{cut:>12}" for cut in cuts)]
    for name, points in curves.items():
        cells = [_cell(points.get(str(cut))) for cut in cuts]
        lines.append(f"{name:>8} " + " ".join(f"{cell:>12}" for cell in cells))
    return lines


def _cell(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    spread = "" if point["std"] is None else f" ±{100 * point['std']:.1f}"
    return f"{100 * point['mean']:.1f}{spread}"


def write_curves(path: Path, found: Mapping[Network, Sequence[float]]) -> None:
    """Every evaluation of every network, a row each."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["network", "repeat", "source", "target", "cut", "learns", "evaluation", "accuracy"])
    for network, curve in found.items():
        facts = [network.name, network.repeat, network.source or "", network.target, network.cut, network.learns]
        writer.writerows([*facts, number, value] for number, value in enumerate(curve, start=1))
    write_atomically(path, text.getvalue())


def draw(path: Path, curves: Curves, layers: Sequence[str]) -> None:
    """The paper's figure 2: a point a network, a line through the means, the bases at n = 0.

    Curves of one target share a panel; with `random`, all classes, in one of its own.
    """
    panels: dict[str, list[str]] = {}
    for name in curves:
        panels.setdefault("all classes" if name == "random" else f"target {name.rstrip('+')[-1]}", []).append(name)
    if "target e" in panels:  # `base` of pooled halves
        panels["target B"] = [*panels.pop("target e"), *panels.get("target B", [])]
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, name in enumerate(names):
            colour = f"C{number}"
            for cut, point in curves[name].items():
                panel.scatter([int(cut)] * point["networks"], point["values"], s=12, color=colour, alpha=0.5)
            cuts, means = [int(cut) for cut in curves[name]], [point["mean"] for point in curves[name].values()]
            panel.plot(cuts, means, marker="o", markersize=4, color=colour, label=name)
            if cuts == [0]:
                panel.axhline(means[0], color=colour, linewidth=0.8, linestyle=":")
        panel.set_title(title)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel(f"n, layers that are copied or stay random (of {len(layers)})")
        panel.set_ylabel("accuracy")
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=120)

"""The picture of a ranking: one panel a score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from transfer_run.methods.transferability.ranking.ranking import ranking

COLUMNS = 4
Values = Mapping[str, float]


def draw(
    path: Path,
    scores: Mapping[str, Values],
    accuracies: Values,
    agreements: Mapping[str, Any],
    layers: Mapping[str, list[str]],
) -> None:
    """Write a PNG: scores along the depth where layers are ranked, else against accuracy where known, else as bars.

    Args:
        scores: by score, then by candidate.
        accuracies: fine-tuned accuracies by candidate.
        agreements: by score, as `ranking.agreement` gives them.
        layers: the candidates that are layers of one backbone, in order, by backbone; empty if backbones are ranked.
    """
    columns = min(COLUMNS, len(scores))
    rows = -(-len(scores) // columns)
    bars = max(len(values) for values in scores.values())
    figure = Figure(figsize=(3.4 * columns, max(2.8, 1.2 + 0.2 * bars) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (score, values) in zip(panels, scores.items(), strict=False):
        panel.set_title(score)
        if layers:
            _depth(panel, values, layers)
        elif agreements.get(score):
            _scatter(panel, values, accuracies, agreements[score]["weighted_tau"])
        else:
            _bars(panel, values)
        panel.locator_params(axis="x", nbins=5)
    for panel in panels[len(scores) :]:
        panel.set_axis_off()
    drawn = {name: dot for panel in panels for dot, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    if drawn:
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns, fontsize="small")
    figure.savefig(path, dpi=120)


def _depth(panel: Axes, values: Values, layers: Mapping[str, list[str]]) -> None:
    for backbone, names in layers.items():
        places = [i for i, name in enumerate(names) if name in values]
        panel.plot(places, [values[names[i]] for i in places], marker="o", label=backbone)
    panel.set_xlabel("layer (the last one: the head's input)")
    panel.set_ylabel("score")


def _scatter(panel: Axes, values: Values, accuracies: Values, tau: float | None) -> None:
    for place, name in enumerate(accuracies):  # one colour a candidate in all panels
        if name in values:
            marker = "os^Dv"[place // 10 % 5]
            panel.scatter(values[name], accuracies[name], color=f"C{place % 10}", marker=marker, label=name)
    panel.set_xlabel("score" if tau is None else f"score (weighted tau {tau:+.2f})")
    panel.set_ylabel("accuracy, fine-tuned")


def _bars(panel: Axes, values: Values) -> None:
    order = ranking(values)[::-1]
    panel.barh(order, [values[name] for name in order])
    panel.set_xlabel("score")
    panel.tick_params(axis="y", labelsize="small")

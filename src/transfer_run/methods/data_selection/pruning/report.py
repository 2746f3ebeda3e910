"""What a selection leaves to read: the printed lines, `groups.csv`, and the picture of its scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

SHOWN = 10
NAMED = 40
"""So many groups still have their names under the bars."""


def selection_table(results: Mapping[str, Any]) -> list[str]:
    """The printed lines: what was kept of groups and of rows, and the groups with the highest scores."""
    groups = results.get("groups")
    of_groups = f"{groups['kept']} of {groups['of']} groups, " if groups else ""
    train = results["rows"]["train"]
    first = f"kept of {results['source']} by {results['mapping']}: {of_groups}{train['kept']} of {train['of']} rows"
    lines = [f"{first} ({100 * train['kept'] / train['of']:.1f} %)"]
    lines += [f"  {split}: {n['kept']} of {n['of']} rows" for split, n in results["rows"].items() if split != "train"]
    if groups:
        names = results["kept_groups"][:SHOWN]
        width = max(map(len, names))
        scores = (results["scores"][name] for name in names)
        lines += [f"  {n:<{width}}  {'no rows' if s is None else f'{s:g}'}" for n, s in zip(names, scores, strict=True)]
        left = groups["kept"] - len(names)
        lines += [f"  and {left} more, see groups.csv"] if left else []
    return lines


def write_groups(
    path: Path,
    names: Sequence[str],
    scores: NDArray[np.generic],
    sizes: NDArray[np.int64],
    kept: NDArray[np.int64],
) -> None:
    """A line a group: number, name, score, training rows, rank among the kept ones (empty: pruned)."""
    rank = {int(group): place for place, group in enumerate(kept, 1)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "name", "score", "train_rows", "kept_rank"])
        for group, (name, score, size) in enumerate(zip(names, scores.tolist(), sizes.tolist(), strict=True)):
            writer.writerow([group, name, score, size, rank.get(group, "")])


def draw(path: Path, names: Sequence[str], scores: NDArray[np.generic], kept: NDArray[np.int64], mapping: str) -> None:
    """Write a PNG: the groups by score, kept ones in colour."""
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    values = np.nan_to_num(scores[order].astype(np.float64), neginf=np.nan)
    chosen = np.isin(order, kept)
    figure = Figure(figsize=(max(4.0, min(10.0, 0.25 * len(names) + 2)), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    places = np.arange(len(order))
    for mask, colour, label in ((chosen, "C0", "kept"), (~chosen, "0.75", "pruned")):
        if mask.any():
            panel.bar(places[mask], values[mask], width=0.9, color=colour, label=label)
    if len(names) <= NAMED:
        panel.set_xticks(places, [names[group] for group in order], rotation=90 if len(names) > 12 else 0)
    panel.set_xlabel("source group")
    panel.set_ylabel("target samples that map to it" if mapping in ("lm", "fm") else f"score ({mapping})")
    panel.legend(frameon=False)
    figure.savefig(path, dpi=120)

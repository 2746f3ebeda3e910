"""What a transfer came to: metrics, a table, and the picture of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_run.methods.distillation.transfer.knowledge import Answers, ensemble, of_pair, only, pairs
from transfer_run.methods.distillation.transfer.picture import draw

PICTURE = "knowledge.png"


def conclusions(before: Answers, after: Answers, labels: Sequence[str], split: str, folder: Path) -> dict[str, Any]:
    """For `result.json`: `metrics` are shares of the samples; `complementary` tells all of every pair.

    Args:
        before: of the student (first) and its teachers, before training.
        after: of the student alone, of the same samples.
        labels: names of the classes.
        split: which samples these are.
    """
    right, end = before.right, after.right[0]
    start, classes = right[0], labels or [str(number) for number in range(int(before.labels.max()) + 1)]
    gained, lost = only(end, start), only(start, end)
    teachers = [of_pair(name, right[i], start, end, before.labels, classes) for i, name in enumerate(before.names) if i]
    metrics = {
        "before/accuracy": float(start.mean()),
        "delta_transf": float(end.mean() - start.mean()),
        "success": float(end.mean() > start.mean()),
        "knowledge_gain": float(gained.mean()),
        "knowledge_loss": float(lost.mean()),
    }
    for number, each in enumerate(teachers, 1):
        name = each["teacher"]
        metrics[f"{name}/accuracy"] = each["accuracy"]
        metrics[f"{name}/positive_flips"] = each["positive_flips"]
        metrics[f"{name}/negative_flips"] = each["negative_flips"]
        metrics[f"{name}/ensemble"] = ensemble(before.sure[[0, number]], right[[0, number]])
        if "top_100" in each["transfer_rate"]:
            metrics[f"{name}/transfer_rate"] = each["transfer_rate"]["top_100"]
    names = [*before.names, *after.names]
    shares = pairs(np.vstack([right, end[None]]))
    draw(folder / PICTURE, names, shares, {each["teacher"]: each["by_class"] for each in teachers})
    return {
        "metrics": metrics,
        "table": _table(metrics, teachers, names, shares, split),
        "complementary": {"split": split, "pool": names, "right_where_wrong": shares.tolist(), "teachers": teachers},
        "picture": PICTURE,
    }


def _table(
    metrics: dict[str, float], teachers: list[dict[str, Any]], names: list[str], shares: Any, split: str
) -> list[str]:
    """Lines for people; per cent of the samples of the split."""
    lines = [
        f"{split}: accuracy {metrics['before/accuracy']:.4f} before, {metrics['delta_transf']:+.4f} by the transfer "
        f"(gained {metrics['knowledge_gain']:.4f}, lost {metrics['knowledge_loss']:.4f})"
    ]
    for each in teachers:
        first = ", ".join(f"{name} {count}" for name, count in list(each["by_class"].items())[:5])
        rate = each["transfer_rate"].get("top_100")
        said = "nothing" if rate is None else f"{100 * each['positive_flips']:.1f} % more, of which {rate:.0%} arrived"
        about = f"{each['teacher']} (accuracy {each['accuracy']:.4f}) knew {said}"
        lines.append(f"{about}: {first}" if first else about)
    width = max(map(len, names))
    lines.append(f"right (row) where the other (column) is wrong, in %: {', '.join(names)}")
    for name, row in zip(names, shares, strict=True):
        lines.append(f"{name:<{width}}  " + "  ".join(f"{100 * value:5.1f}" for value in row))
    return lines

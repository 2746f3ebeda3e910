"""Finished runs side by side: accuracy, trained parameters, memory measured and predicted, saving; and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MIB = 2**20


def headline(result: dict[str, Any]) -> float:
    """The first test metric of a result (the task's headline comes first in its metrics)."""
    tests = {name: value for name, value in result["metrics"].items() if name.startswith("test/")}
    for name in ("test/accuracy", "test/glue"):
        if name in tests:
            return float(tests[name])
    return float(next(iter(tests.values()), float("nan")))


def rows_of(results: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row a run; `saving` is the share of the baseline's measured peak (same backbone and dataset) not needed."""
    peaks = {(r["backbone"], r["dataset"]): r["memory"]["peak"] for r in results if r["method"] == baseline}
    rows = []
    for result in results:
        memory, full = result["memory"], peaks.get((result["backbone"], result["dataset"]))
        rows.append(
            {
                "backbone": result["backbone"],
                "dataset": result["dataset"],
                "method": result["method"],
                "accuracy": headline(result),
                "trainable": result["parameters"]["trainable"],
                "trainable_pct": result["parameters"]["trainable_pct"],
                "peak": memory["peak"],
                "predicted": memory["predicted_peak"],
                "saving": None if not full else 1 - memory["peak"] / full,
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, memory in MiB."""
    lines = [
        "| backbone | dataset | method | test accuracy | trainable parameters "
        "| measured peak | predicted peak | saving |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        saving = "" if row["saving"] is None else f"{100 * row['saving']:.0f} %"
        lines.append(
            f"| {row['backbone']} | {row['dataset']} | {row['method']} | {row['accuracy']:.3f} "
            f"| {row['trainable']:,} ({row['trainable_pct']:.1f} %) | {row['peak'] / MIB:.1f} MiB "
            f"| {row['predicted'] / MIB:.1f} MiB ({100 * (row['predicted'] / row['peak'] - 1):+.1f} %) | {saving} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against measured peak memory, a panel for each backbone and dataset."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from transfer_run.tables.picture import name_points

    panels = sorted({(row["backbone"], row["dataset"]) for row in rows})
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False)
    for axis, (backbone, dataset) in zip(axes[0], panels, strict=True):
        here = [row for row in rows if (row["backbone"], row["dataset"]) == (backbone, dataset)]
        for index, row in enumerate(here):
            axis.scatter(row["peak"] / MIB, row["accuracy"], s=70, color=f"C{index}", zorder=3)
        axis.set_title(f"{backbone.rpartition('/')[2]} on {dataset}")
        axis.set_xlabel("peak training memory, MiB (less is better)")
        axis.set_ylabel("test accuracy")
        axis.margins(x=0.25, y=0.2)
        axis.set_xlim(0, 1.2 * max(row["peak"] for row in here) / MIB)  # room for the labels
        axis.grid(alpha=0.3)
    figure.tight_layout()
    for axis, (backbone, dataset) in zip(axes[0], panels, strict=True):
        here = [row for row in rows if (row["backbone"], row["dataset"]) == (backbone, dataset)]
        name_points(axis, [(row["method"], [(row["peak"] / MIB, row["accuracy"])]) for row in here])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)

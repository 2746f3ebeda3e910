"""The table of a merge: every task's own model beside the merged one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transfer_run.methods.merging.runs.source_task import SourceTask


def task_rows(tasks: Sequence[SourceTask], merged: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """One row a task and their mean, by each task's headline metric on the test split."""
    rows: list[dict[str, Any]] = []
    for task, scores in zip(tasks, merged, strict=True):
        metric = task.task.headline
        rows.append(
            {"task": task.name, "metric": metric, "individual": task.scores().get(metric), "merged": scores[metric]}
        )
    if rows:
        rows.append(
            {
                "task": "average",
                "metric": "",
                "individual": _mean([row["individual"] for row in rows]),
                "merged": _mean([row["merged"] for row in rows]),
            }
        )
    return rows


def task_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The merged model's scores as metrics of the run: `test/TASK/METRIC` and `test/average`."""
    return {"/".join(part for part in ("test", row["task"], row["metric"]) if part): row["merged"] for row in rows}


def task_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, for the log."""
    lines = [f"{'task':24}{'metric':16}{'individual':>12}{'merged':>12}"]
    for row in rows:
        figures = [f"{row[key]:.4f}" if row[key] is not None else "" for key in ("individual", "merged")]
        lines.append(f"{row['task']:24}{row['metric']:16}{figures[0]:>12}{figures[1]:>12}")
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

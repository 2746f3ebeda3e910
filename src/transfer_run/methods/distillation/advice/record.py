"""What a distillation leaves for the table and for AutoDistiller: scores beside the student's, sizes, the ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Context
from transfer_run.run_folder import read_result
from transfer_run.task import Task


def distillation_ratio(student: float, teacher: float, baseline: float) -> float | None:
    """(student - baseline) / (teacher - baseline): the share of the gap that the teacher closes.

    1 where the student reaches its teacher, 0 where it is no better than without one; None where there is no gap.
    """
    gap = teacher - baseline
    return None if abs(gap) < 1e-9 else (student - baseline) / gap


def headline_of(run: Path, headline: str) -> float | None:
    """The test score of a finished run; None where it has none."""
    value = (read_result(run) or {}).get("metrics", {}).get(f"test/{headline}")
    return None if value is None else float(value)


def facts_of(student: Backbone, teacher: Backbone, task: Task) -> dict[str, Any]:
    """Sizes of both models and of the task, as AutoDistiller's regressor reads them."""
    facts: dict[str, Any] = {"task": task.form, "labels": task.num_labels}
    for name, backbone in (("student", student), ("teacher", teacher)):
        facts |= {
            f"{name}_parameters": sum(p.numel() for p in backbone.model.parameters()),
            f"{name}_depth": backbone.depth(backbone.stacks[0]),
            f"{name}_width": backbone.width(backbone.stacks[0]),
        }
    return facts


def data_facts(context: Context) -> dict[str, float]:
    """Number of training examples, and their mean length in tokens (0 for images) over the first batches."""
    lengths: list[float] = []
    for number, batch in enumerate(context.batches("train", context.batch_size)):
        if "attention_mask" not in batch or number == 20:
            break
        lengths += batch["attention_mask"].sum(1).tolist()
    return {
        "examples": float(context.sizes.get("train", 0)),
        "mean_length": sum(lengths) / len(lengths) if lengths else 0.0,
    }


def source_scores(task: Task, context: Context) -> dict[str, float]:
    """Headline scores of the teacher and of the student without one, of those that are source runs."""
    found = {
        name: headline_of(context.sources[name], task.headline)
        for name in ("teacher", "baseline")
        if name in context.sources
    }
    return {name: value for name, value in found.items() if value is not None}


def recorded(facts: dict[str, Any], task: Task, context: Context) -> dict[str, Any]:
    """Metrics beside the student's own, and the facts for AutoDistiller under `distillation`."""
    headline, scores = task.headline, source_scores(task, context)
    metrics: dict[str, float] = {f"{name}/{headline}": value for name, value in scores.items()}
    student = context.scores.get(f"test/{headline}")
    student = None if student is None else round(student, 6)  # as a run's record has it, which the others come from
    ratio = None
    if student is not None and {"teacher", "baseline"} <= scores.keys():
        ratio = distillation_ratio(student, scores["teacher"], scores["baseline"])
    if ratio is not None:
        metrics["distillation_ratio"] = ratio
    known = {f"{name}_score": value for name, value in scores.items()}
    return {"metrics": metrics, "distillation": {**facts, **data_facts(context), **known, "ratio": ratio}}

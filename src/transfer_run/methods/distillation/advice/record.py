"""What a distillation leaves for the table and for AutoDistiller: scores beside the student's, sizes, the ratio."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transfer_run.backbones.base import Backbone
from transfer_run.data.scores.direction import Better
from transfer_run.methods.base import Context
from transfer_run.methods.form import find_form
from transfer_run.run_folder import read_result
from transfer_run.task import Task


def distillation_ratio(student: float, teacher: float, baseline: float, examples: int, better: Better) -> float | None:
    """(student - baseline) / (teacher - baseline): the share of the gap that the teacher closes.

    1 where the student reaches its teacher, 0 where it is no better than without one. None where the teacher is not
    better than the baseline by more than chance: divided by noise, or by a gap of the other sign, it says nothing.

    Args:
        examples: what the scores were measured on.
        better: is the first score the better one?
    """
    if not better(teacher, baseline) or abs(teacher - baseline) <= chance(teacher, baseline, examples):
        return None
    return (student - baseline) / (teacher - baseline)


def chance(first: float, second: float, examples: int) -> float:
    """The standard error of the difference of two scores on so many examples: of shares of right answers where both
    lie in [0, 1], else a share of their size."""
    count = max(1, examples)
    if min(first, second) >= 0 and max(first, second) <= 1:
        return math.sqrt((first * (1 - first) + second * (1 - second)) / count)
    return max(abs(first), abs(second)) / math.sqrt(count)


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
        pair = scores["teacher"], scores["baseline"]
        better = find_form(task.form).scores(context.data, "test").better
        ratio = distillation_ratio(student, *pair, context.sizes.get("test", 0), better)
        if ratio is None:
            context.log(
                f"no distillation ratio: the teacher's {headline} of {pair[0]:.4f} is not better than the baseline's "
                f"{pair[1]:.4f} by more than chance"
            )
    if ratio is not None:
        metrics["distillation_ratio"] = ratio
    known = {f"{name}_score": value for name, value in scores.items()}
    return {"metrics": metrics, "distillation": {**facts, **data_facts(context), **known, "ratio": ratio}}

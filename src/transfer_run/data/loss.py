"""What a data set's config says of the training loss. Imports nothing heavy.

Class weights, label smoothing and balanced softmax act in the task's own cross-entropy while a method is in training
mode; evaluation and passes over the data before training see the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transfer_run.errors import UserError

if TYPE_CHECKING:
    from transfer_run.task import Task

BALANCED = "balanced"
SMOOTHED = ("classification", "text_to_text", "language_modeling")
"""The forms whose own loss is a cross-entropy over labels that exclude each other."""


def check_loss(dataset: Mapping[str, Any], form: str) -> None:
    """`dataset.class_weights`, `label_smoothing`, `balanced_softmax` where the loss of the form has them.

    Raises:
        UserError: another form, a sequence (its method has a loss of its own), or values that are none.
    """
    weights, smoothing = dataset.get("class_weights"), dataset.get("label_smoothing")
    named = f"dataset={dataset['name']}"
    prior, one = dataset.get("balanced_softmax") or None, SMOOTHED[:1]
    asks = (("class_weights", weights, one), ("label_smoothing", smoothing, SMOOTHED), ("balanced_softmax", prior, one))
    for key, value, forms in asks:
        if value is not None and (form not in forms or "tasks" in dataset):
            what = "one task after another" if "tasks" in dataset else form
            raise UserError(
                f"{named} is answered as {what}, whose loss has no {key}.",
                where=f"dataset.{key}",
                remedy=f"dataset.{key}={'false' if value is True else 'null'}"
                + (", or dataset.answers=head" if form == "text_to_text" else ""),
            )
    if smoothing and not smoothing < 1:
        raise UserError(f"{smoothing:g} would leave nothing of the label.", where="dataset.label_smoothing")
    if weights is None or weights == BALANCED:
        return
    if not (isinstance(weights, Sequence) and all(map(_positive, weights)) and any(weights)):
        raise UserError(
            f"{weights!r} is neither '{BALANCED}' nor a list of one number a class, of at least 0 and not all 0.",
            where="dataset.class_weights",
            nearest=[BALANCED],
        )
    if dataset.get("num_labels"):
        _check_count(weights, int(dataset["num_labels"]), dataset.get("label_names") or ())


def _check_count(weights: Sequence[float], classes: int, names: Sequence[str]) -> None:
    if len(weights) != classes:
        raise UserError(
            f"There are {len(weights)} weights for {classes} classes.",
            where="dataset.class_weights",
            remedy=f"one number for each of {', '.join(names[:8])}" if names else "one number for each class",
        )


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def with_loss(task: Task, dataset: Mapping[str, Any], counts: Callable[[], Sequence[int]] | None = None) -> Task:
    """The task with what `dataset` sets of its training loss.

    Args:
        counts: rows of each class in the training split, asked for by `balanced`; None (a plan): all classes alike.

    Raises:
        UserError: see `check_loss`; or weights of another number than the classes.
    """
    weights, smoothing = dataset.get("class_weights"), dataset.get("label_smoothing")
    if not weights and not smoothing:
        return task
    check_loss(dataset, task.form)
    if weights == BALANCED:
        weights = balanced([1] * task.num_labels if counts is None else counts())
    elif weights:
        _check_count(weights, task.num_labels, task.label_names)
    return replace(task, class_weights=tuple(map(float, weights or ())), label_smoothing=float(smoothing or 0))


def balanced(counts: Sequence[int]) -> list[float]:
    """Weights with which all classes that occur weigh alike, rows / (classes * rows of the class), as scikit-learn's
    `balanced`; 0 for a class without rows."""
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]

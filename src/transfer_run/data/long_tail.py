"""A long-tailed version of a data set of classes: fewer and fewer training rows of each class; what is tested stays.

dataset.long_tail={factor: 100, kind: exp}
    exp     class c of C keeps n factor^(-c / (C - 1)) of its n rows, rounded down (Cao et al. 2019, arXiv 1906.07413)
    step    the first half of the classes keeps all, the others 1 / factor of it (Buda et al. 2018, arXiv 1710.05381)

A class is one of many, medium or few rows (Liu et al. 2019, arXiv 1904.05160): more than `many`, fewer than `few`, or
neither. Which rows are kept never depends on the seed, and those of a larger factor are among those of a smaller one.
Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transfer_run.data.asked import asked
from transfer_run.errors import UserError

if TYPE_CHECKING:
    from transfer_run.data.rows.subset import Rows
    from transfer_run.task import Task

LONG_TAIL = "long_tail"
GROUPS = ("many", "medium", "few")
OF_GROUP = {f"accuracy_{group}": group for group in GROUPS}
"""Scores of the classes of one group alone."""


def check_long_tail(dataset: Mapping[str, Any]) -> None:
    """`dataset.long_tail` where it can be followed.

    Raises:
        UserError: the rows have no classes, stand in a sequence of tasks, or a class would be of many and of few rows.
    """
    node = dataset.get(LONG_TAIL) or {}
    if node and node["few"] > node["many"] + 1:
        raise UserError(
            f"A class of {node['many'] + 1} rows would be one of many (more than {node['many']}) and of few (fewer "
            f"than {node['few']}).",
            where=f"dataset.{LONG_TAIL}.few={node['few']}",
            remedy=f"dataset.{LONG_TAIL}.few={node['many'] + 1}, or less",
        )
    if not node or node["factor"] is None or (asked(dataset).classes and "tasks" not in dataset):
        return
    what = "is one task after another" if "tasks" in dataset else f"asks for {dataset['form']}, and has no classes"
    raise UserError(
        f"dataset={dataset['name']} {what}.",
        where=f"dataset.{LONG_TAIL}.factor={node['factor']:g}",
        remedy=f"dataset.{LONG_TAIL}.factor=null, or a dataset of classification",
    )


def kept_counts(counts: Sequence[int], factor: float, kind: str) -> list[int]:
    """Rows that each class keeps of its `counts`, in the order of the classes' numbers."""
    last = max(len(counts) - 1, 1)
    half = (len(counts) + 1) // 2
    powers = [c / last if kind == "exp" else float(c >= half) for c in range(len(counts))]
    return [int(n * factor**-power + 1e-9) for n, power in zip(counts, powers, strict=True)]


def long_tailed(labels: Rows, names: Sequence[str], factor: float, kind: str) -> Rows:
    """Numbers of the rows that are kept, ascending.

    Args:
        labels: of all rows (n,); those below 0, without a label, are left out.
        names: of the classes.

    Raises:
        UserError: a class that has rows would have none.
    """
    import numpy as np

    from transfer_run.data.rows.splits import shuffled

    counts = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
    kept = kept_counts(counts, factor, kind)
    lost = next((c for c, n in enumerate(kept) if counts[c] and not n), None)
    if lost is not None:
        raise UserError(
            f"Of the {counts[lost]} training rows of class {names[lost]!r} none would be left.",
            where=f"dataset.{LONG_TAIL}.factor={factor:g}",
            remedy="choose a smaller factor",
        )
    rows = [np.flatnonzero(labels == c)[shuffled(counts[c])[:n]] for c, n in enumerate(kept)]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def group_of(rows: int, many: int, few: int) -> str:
    """The group of a class with so many training rows."""
    return "many" if rows > many else "few" if rows < few else "medium"


def with_counts(
    task: Task,
    dataset: Mapping[str, Any],
    counts: Callable[[], Sequence[int]] | None = None,
    rows: Callable[[], Sequence[int]] | None = None,
) -> Task:
    """The task with its classes' training rows, where the loss or the scores ask for them.

    A long-tailed version is scored by group without being asked; groups that no class is in are left out.

    Args:
        counts: rows of each class in the training split, as often as they are read; None (a plan): all classes alike.
        rows: the same, each row once: what a class's group is told by.

    Raises:
        UserError: a score of a group that no class is in; balanced softmax with a class that has no rows.
    """
    node, balanced = dataset.get(LONG_TAIL) or {}, bool(dataset.get("balanced_softmax"))
    wanted = {OF_GROUP[name] for name in task.metrics if name in OF_GROUP}
    if not (balanced or wanted or node.get("factor")):
        return task
    found = tuple(int(n) for n in counts()) if counts is not None else (1,) * task.num_labels
    once = found if rows is None else rows()
    groups = tuple(group_of(n, node.get("many", 100), node.get("few", 20)) for n in once)
    if counts is not None:
        _check_counts(task, found, groups, wanted, balanced)
    own = [name for name, group in OF_GROUP.items() if group in groups and node.get("factor")]
    metrics = (*task.metrics, *(name for name in own if name not in task.metrics))
    return replace(task, class_counts=found, class_groups=groups, balanced_softmax=balanced, metrics=metrics)


def _check_counts(task: Task, counts: Sequence[int], groups: Sequence[str], wanted: set[str], balanced: bool) -> None:
    missing = next((group for group in GROUPS if group in wanted and group not in groups), None)
    if missing is not None:
        raise UserError(
            f"No class is one of {missing} training rows: classes have from {min(counts)} to {max(counts)}.",
            where=f"dataset.metrics: accuracy_{missing}",
            remedy=f"leave it out, or set dataset.{LONG_TAIL}.many and dataset.{LONG_TAIL}.few",
        )
    if balanced and 0 in counts:
        raise UserError(
            f"Class {task.label_names[counts.index(0)]!r} has no training rows, whose logarithm is none.",
            where="dataset.balanced_softmax",
            remedy="dataset.balanced_softmax=false, or give the class rows",
        )

"""Two halves of a data set's classes, and the rows of each.

random             numpy's legacy generator of seed `seed + repeat` draws A without replacement, sorted, as the paper
list               A is what `classes` names, by name or number
natural_imagenet   A is natural entities, B man-made ones: 449 and 551 classes of ImageNet-1k
natural_cifar100   the same of CIFAR-100: 70 and 30 classes, by its superclasses
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from transfer_run.data.base import DataModule
from transfer_run.data.rows.subset import Rows
from transfer_run.errors import UserError, nearest_names
from transfer_run.task import Task

Kind = Literal["random", "list", "natural_imagenet", "natural_cifar100"]
NATURAL_RANGES = {"natural_imagenet": (1000, [(0, 398), (936, 959), (970, 971), (972, 999)])}
"""Classes in the order of their WordNet numbers: animals; fruit, vegetables; alps; landscapes, flowers, fungi."""
MAN_MADE_CIFAR100 = (
    5, 8, 9, 10, 12, 13, 16, 17, 20, 22, 25, 28, 37, 39, 40, 41, 48, 58, 61, 68, 69, 76, 81, 84, 85, 86, 87, 89, 90, 94,
)  # fmt: skip
"""Containers, appliances, furniture, buildings and vehicles among the classes in alphabetical order."""


def halves(split: Mapping[str, Any], task: Task, repeat: int) -> dict[str, list[int]]:
    """Class numbers of A and B, sorted; together all classes.

    Args:
        split: `kind`, `seed`, `fraction` (of the classes in A), `classes`.
        repeat: which draw of a random split; the others are the same in every repeat.

    Raises:
        UserError: a half of fewer than two classes, unknown classes, or another data set than the kind is of.
    """
    count, kind = task.num_labels, str(split["kind"])
    if kind == "random":
        generator = np.random.RandomState(int(split["seed"]) + repeat)
        first = generator.choice(count, round(count * float(split["fraction"])), replace=False).tolist()
    elif kind == "list":
        first = [_number(each, task) for each in split.get("classes") or ()]
    else:
        first = _natural(kind, count)
    found = {"A": sorted(first), "B": sorted(set(range(count)) - set(first))}
    if len(set(first)) != len(first):
        raise UserError("A class is named twice.", where="method.split.classes", remedy="name each once")
    if min(map(len, found.values())) < 2:
        raise UserError(
            f"A half needs two classes; of {count} there are {len(found['A'])} in A and {len(found['B'])} in B.",
            where="method.split",
            remedy="a data set of four classes or more, and a share or a list that leaves two for each half",
        )
    return found


def _natural(kind: str, count: int) -> list[int]:
    if kind == "natural_cifar100":
        needed, numbers = 100, sorted(set(range(100)) - set(MAN_MADE_CIFAR100))
    else:
        needed, ranges = NATURAL_RANGES[kind]
        numbers = [number for begin, end in ranges for number in range(begin, end)]
    if count != needed:
        raise UserError(
            f"method.split.kind={kind} is of {needed} classes, the data set has {count}.",
            where="method.split.kind",
            remedy="method.split.kind=list method.split.classes=[...] names the classes of A",
        )
    return numbers


def _number(named: Any, task: Task) -> int:
    """The number of a class by its name, or by itself where no class is called so."""
    if str(named) in task.label_names:
        return task.label_names.index(str(named))
    if str(named).isdigit() and int(named) < task.num_labels:
        return int(named)
    raise UserError(
        f"There is no class {named!r}.",
        where="method.split.classes",
        nearest=nearest_names(str(named), task.label_names) or list(task.label_names[:5]),
    )


def rows_of(data: DataModule, split: str, classes: Sequence[int], per_class: int | None, seed: int) -> Rows:
    """Rows of these classes in order, of each at most `per_class`, drawn by `seed`.

    Raises:
        UserError: a class has no row.
    """
    labels = data.labels(split)
    generator, kept = np.random.RandomState(seed), []
    for number in classes:
        rows = np.flatnonzero(labels == number)
        if len(rows) == 0:
            raise UserError(
                f"The split {split} has no row of class {data.label_names[number]}.",
                where=f"dataset={data.dataset['name']}",
                remedy="choose a data set with rows of every class, or another method.measured_on",
            )
        some = per_class is not None and per_class < len(rows)
        kept.append(generator.choice(rows, per_class, replace=False) if some else rows)
    found: Rows = np.sort(np.concatenate(kept)).astype(np.int64)
    return found

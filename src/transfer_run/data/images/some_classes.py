"""`dataset.classes` of pictures: some of the classes that the data have, in the order in which they are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from transfer_run.data.images.image_data import FileImages, ImageRows, TableImages
from transfer_run.errors import UserError, nearest_names

RANGE = re.compile(r"(\d+):(\d+)")
WHERE = "dataset.classes"


def count_of(classes: Any) -> int:
    """How many classes are chosen, from the words alone.

    Raises:
        UserError: neither different names nor a range of them.
    """
    found = _range(classes)
    return len(_names(classes) if found is None else found)


def numbers_of(classes: Any, names: Sequence[str]) -> list[int]:
    """The numbers among `names` of the classes that are chosen, in the order in which they are.

    Raises:
        UserError: a name or a range that the data do not have.
    """
    found = _range(classes)
    if found is not None:
        if found.stop > len(names):
            raise UserError(
                f"The data have {len(names)} classes, {WHERE} takes those before number {found.stop}.",
                where=f"{WHERE}={classes}",
                remedy=f"FIRST:END with END at most {len(names)}",
            )
        return list(found)
    unknown = next((name for name in _names(classes) if name not in names), None)
    if unknown is not None:
        raise UserError(
            f"There is no class '{unknown}' among the {len(names)} of the data.",
            where=WHERE,
            nearest=nearest_names(unknown, names),
            remedy="name classes as the data do, or FIRST:END of their order (0:10)",
        )
    return [names.index(name) for name in _names(classes)]


def only(images: ImageRows, numbers: Sequence[int]) -> ImageRows:
    """The rows of these classes, which are numbered anew; rows without a label are left out."""
    label = {number: place for place, number in enumerate(numbers)}
    rows = [row for row, number in enumerate(images.labels.tolist()) if number in label]
    return chosen(images, rows, np.array([label[int(images.labels[row])] for row in rows], dtype=np.int64))


def chosen(images: ImageRows, rows: list[int], labels: np.ndarray | None = None) -> ImageRows:
    """Some rows of a split, with labels of their own where these are given."""
    told = images.labels[rows] if labels is None else labels
    if isinstance(images, FileImages):
        return FileImages([images.paths[row] for row in rows], told)
    if isinstance(images, TableImages):
        return replace(images, table=images.table.select(rows), labels=told)
    raise TypeError(f"cannot choose rows of {type(images).__name__}")


def _range(classes: Any) -> range | None:
    match = RANGE.fullmatch(classes) if isinstance(classes, str) else None
    return range(int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def _names(classes: Any) -> list[str]:
    given = [str(name) for name in classes] if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    if not given or len(set(given)) < len(given):
        raise UserError(
            "Some classes of the data are different names, or FIRST:END of their order.",
            where=f"{WHERE}={classes}",
            remedy="dataset.classes=[cat,dog], or dataset.classes=0:10 for the first ten",
        )
    return given

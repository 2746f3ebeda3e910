"""Tables of captions: each row names an image or a video, and says what there is to say of it.

    image      caption
    3.jpg      A dog runs.
    3.jpg      A brown dog.

One name in several rows, or a list of captions in one row: one image with several captions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from transfer_run.data.images.image_text import Captioned
from transfer_run.data.reading.archive import place_of
from transfer_run.data.reading.table import Table, path_of, split_tables
from transfer_run.data.rows.splits import SPLITS, completed
from transfer_run.errors import UserError


@dataclass(frozen=True)
class TableItems(ABC):
    """What the rows of a table name, each once.

    Attributes:
        rows: for each item, the row of the table where it stands first.
        root: the folder that relative paths start from.
    """

    table: Table
    column: str
    rows: np.ndarray
    root: Path

    @classmethod
    @abstractmethod
    def key(cls, named: Any, root: Path, where: str) -> str:
        """What tells an item from others, of what a row names; `where` says where it stands.

        Raises:
            UserError: there is no such item.
        """

    @property
    def labels(self) -> np.ndarray:
        """Captioned items have no class: -1 each."""
        return np.full(len(self.rows), -1)

    def named(self, item: int) -> Any:
        """What the table says of an item: a path, or bytes."""
        return self.table.rows[int(self.rows[item])][self.column]

    def locate(self, item: int) -> str:
        return self.table.locate(int(self.rows[item]), self.column)


Items = TypeVar("Items", bound=TableItems)


def captioned_splits(
    dataset: Mapping[str, Any], what: str, items: type[Items], notes: list[str]
) -> dict[str, Captioned[Items]]:
    """The splits of `dataset.path`: a table, a folder (or .zip) with tables named train, validation and test, or a
    pattern of tables. One that is missing is taken from train, whole items with all their captions
    (`dataset.split_shares`).

    Args:
        what: `image` or `video`, which begins the names of the keys `WHAT_column` and `WHAT_folder`.
        notes: what a user may not expect of the tables is added to it.

    Raises:
        UserError: a column, an item or a caption is missing; with its file and row.
    """
    path = path_of(dataset)
    tables, folder = split_tables(dataset, SPLITS, place_of(path, notes))
    root = Path(dataset.get(f"{what}_folder") or folder).expanduser()
    notes += [note for table in tables.values() for note in table.notes]
    splits = {name: _captioned(table, dataset, what, items, root) for name, table in tables.items()}
    unlabelled = {name: split.images.labels for name, split in splits.items()}
    parts = completed(unlabelled, dataset["split_shares"], str(path))
    return {name: _of_items(splits[source], chosen) for name, (source, chosen) in parts.items()}


def _captioned(table: Table, dataset: Mapping[str, Any], what: str, items: type[Items], root: Path) -> Captioned[Items]:
    column, caption = dataset[f"{what}_column"], dataset["caption_column"]
    table.require([column], f"dataset.{what}_column")
    table.require([caption], "dataset.caption_column")
    table = replace(table, rows=_undecoded(table.rows, column))
    captions: list[str] = []
    item_of: list[int] = []
    first: list[int] = []
    numbers: dict[str, int] = {}
    for row, (named, said) in enumerate(zip(table.rows[column], table.rows[caption], strict=True)):
        key = items.key(named, root, table.locate(row, column))
        number = numbers.setdefault(key, len(first))
        first += [row] if number == len(first) else []
        texts = _texts(table, row, caption, said)
        captions += texts
        item_of += [number] * len(texts)
    shown = items(table, column, np.array(first, dtype=np.int64), root)
    return Captioned(shown, captions, np.array(item_of, dtype=np.int64))


def _undecoded(rows: Any, column: str) -> Any:
    from datasets import Image as ImageFeature

    stored = isinstance(rows.features[column], ImageFeature)
    return rows.cast_column(column, ImageFeature(decode=False)) if stored else rows


def _texts(table: Table, row: int, column: str, said: Any) -> list[str]:
    texts = said if isinstance(said, list) else [said]
    if not texts or any(not isinstance(text, str) or not text.strip() for text in texts):
        raise UserError(
            "A caption is missing or no text.",
            where=table.locate(row, column),
            remedy="write one, or leave the row out",
        )
    return texts


def _of_items(split: Captioned[Items], items: list[int]) -> Captioned[Items]:
    """Some items with all their captions, numbered anew."""
    shown = replace(split.images, rows=split.images.rows[items])
    new = np.full(len(split.images.rows), -1)
    new[items] = np.arange(len(items))
    kept = np.flatnonzero(new[split.image_of] >= 0)
    return Captioned(shown, [split.captions[int(row)] for row in kept], new[split.image_of[kept]])

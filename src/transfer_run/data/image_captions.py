"""Your own images with captions: a table of image files and what is said of them (Flickr30K, COCO and kin)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfer_run.data.image_text import Captioned, ImageText
from transfer_run.data.splits import SPLITS, completed
from transfer_run.data.table import Table, existing, path_of, read_files, read_folder
from transfer_run.errors import UserError


@dataclass(frozen=True)
class TablePictures:
    """Images that a table names by path or holds as bytes.

    Attributes:
        rows: for each image, the row of the table where it stands first.
        root: the folder that relative paths start from.
    """

    table: Table
    column: str
    rows: np.ndarray
    root: Path

    @property
    def labels(self) -> np.ndarray:
        return np.full(len(self.rows), -1)

    def image(self, row: int) -> Image.Image:
        found = self.table.rows[int(self.rows[row])][self.column]
        if isinstance(found, Mapping):
            return Image.open(io.BytesIO(found["bytes"]) if found.get("bytes") else self.root / found["path"])
        return Image.open(self.root / str(found))

    def place(self, row: int) -> str:
        return self.table.place(int(self.rows[row]), self.column)


class ImageCaptions(ImageText):
    """`dataset.path` is a table (.csv, .tsv, .json, .jsonl, .parquet) or a folder with tables named train, validation
    and test, each with a column of images (paths, relative to `dataset.image_folder` or the tables' folder; or bytes)
    and one of captions. An image with several captions has several rows, or a list of captions in one row.

    A split that is missing is taken from train, whole images with all their captions (`dataset.split_shares`).
    """

    def read_pairs(self) -> dict[str, Captioned]:
        path = path_of(self.dataset)
        found = existing(path)
        folder = self.dataset.get("image_folder") or (found.parent if found.is_file() else found)
        tables = {"train": read_files([found])} if found.is_file() else read_folder(path, SPLITS)
        splits = {name: self._captioned(table, Path(folder).expanduser()) for name, table in tables.items()}
        unlabelled = {name: split.images.labels for name, split in splits.items()}
        parts = completed(unlabelled, self.dataset["split_shares"], str(path))
        return {name: _of_images(splits[source], images) for name, (source, images) in parts.items()}

    def _captioned(self, table: Table, root: Path) -> Captioned:
        image, caption = self.dataset["image_column"], self.dataset["caption_column"]
        table.require([image], "dataset.image_column")
        table.require([caption], "dataset.caption_column")
        table = Table(_undecoded(table.rows, image), table.source, table.numbers)
        captions: list[str] = []
        image_of: list[int] = []
        first: list[int] = []
        numbers: dict[str, int] = {}
        for row, (picture, said) in enumerate(zip(table.rows[image], table.rows[caption], strict=True)):
            key = self._key(table, row, picture, root)
            number = numbers.setdefault(key, len(first))
            first += [row] if number == len(first) else []
            texts = _texts(table, row, caption, said)
            captions += texts
            image_of += [number] * len(texts)
        pictures = TablePictures(table, image, np.array(first, dtype=np.int64), root)
        return Captioned(pictures, captions, np.array(image_of, dtype=np.int64))

    def _key(self, table: Table, row: int, picture: Any, root: Path) -> str:
        """What tells an image from others: its path; stored as bytes, its row."""
        path = picture.get("path") if isinstance(picture, Mapping) else picture
        if isinstance(picture, Mapping) and picture.get("bytes"):
            return f"row {row}"
        if not path or not (root / str(path)).is_file():
            column = self.dataset["image_column"]
            raise UserError(
                f"There is no image {str(path)!r} in {root}." if path else "A row names no image.",
                where=table.place(row, column),
                remedy="repair the path, or name the folder that paths start from: dataset.image_folder=FOLDER",
            )
        return str(path)


def _undecoded(rows: Any, column: str) -> Any:
    from datasets import Image as ImageFeature

    stored = isinstance(rows.features[column], ImageFeature)
    return rows.cast_column(column, ImageFeature(decode=False)) if stored else rows


def _texts(table: Table, row: int, column: str, said: Any) -> list[str]:
    texts = said if isinstance(said, list) else [said]
    if not texts or any(not isinstance(text, str) or not text.strip() for text in texts):
        raise UserError(
            "A caption is missing or no text.", where=table.place(row, column), remedy="write one, or leave the row out"
        )
    return texts


def _of_images(split: Captioned, images: list[int]) -> Captioned:
    """Some images with all their captions, numbered anew."""
    assert isinstance(split.images, TablePictures)
    pictures = TablePictures(split.images.table, split.images.column, split.images.rows[images], split.images.root)
    new = np.full(len(split.images.rows), -1)
    new[images] = np.arange(len(images))
    kept = np.flatnonzero(new[split.image_of] >= 0)
    return Captioned(pictures, [split.captions[int(row)] for row in kept], new[split.image_of[kept]])

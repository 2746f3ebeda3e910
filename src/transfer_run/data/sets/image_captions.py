"""Your own images with captions: a table of image files and what is said of them (Flickr30K, COCO and kin)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from transfer_run.data.images.caption_table import TableItems, captioned_splits
from transfer_run.data.images.image_text import Captioned, ImageText
from transfer_run.errors import UserError


@dataclass(frozen=True)
class TablePictures(TableItems):
    """Images that a table names by path or holds as bytes."""

    @classmethod
    def key(cls, named: Any, root: Path, where: str) -> str:
        """Its path; stored as bytes, where it stands."""
        path = named.get("path") if isinstance(named, Mapping) else named
        if isinstance(named, Mapping) and named.get("bytes"):
            return where
        if not path or not (root / str(path)).is_file():
            raise UserError(
                f"There is no image {str(path)!r} in {root}." if path else "A row names no image.",
                where=where,
                remedy="repair the path, or name the folder that paths start from: dataset.image_folder=FOLDER",
            )
        return str(path)

    def image(self, row: int) -> Image.Image:
        found = self.named(row)
        if isinstance(found, Mapping):
            return Image.open(io.BytesIO(found["bytes"]) if found.get("bytes") else self.root / found["path"])
        return Image.open(self.root / str(found))


class ImageCaptions(ImageText):
    """`dataset.path` is a table (.csv, .tsv, .json, .jsonl, .parquet) or a folder with tables named train, validation
    and test, each with a column of images (paths, relative to `dataset.image_folder` or the tables' folder; or bytes)
    and one of captions. An image with several captions has several rows, or a list of captions in one row.

    A split that is missing is taken from train, whole images with all their captions (`dataset.split_shares`).
    """

    def read_pairs(self) -> dict[str, Captioned[TablePictures]]:
        return captioned_splits(self.dataset, "image", TablePictures, self.notes)

"""Image datasets: one class for all; a dataset only says where its images come from (`read_images`)."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from transfer_run.backbones.declared import family_of
from transfer_run.data.asked import asked, refuse_without_classes
from transfer_run.data.base import DataModule, Example
from transfer_run.data.images.augment import build_augment
from transfer_run.data.images.transform import Transform, image_node
from transfer_run.data.reading.labels import said_of_classes, said_of_unlabelled
from transfer_run.data.reading.pictures import said_of_contents
from transfer_run.data.reading.table import Table
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.task import Batch, BatchSpec, Task, class_count

Decoded = TypeVar("Decoded")


class ImageRows(Protocol):
    """One split of an image dataset before decoding; `labels` (n,) are class numbers, or (n, classes) say which of
    several labels a row has; -1 where that is not known."""

    @property
    def labels(self) -> np.ndarray: ...

    def image(self, row: int) -> Image.Image:
        """The image of a row, opened but not converted."""
        ...

    def locate(self, row: int) -> str:
        """Where the image stands, for an error's `where`."""
        ...

    def name(self, row: int) -> str:
        """The image's own file; empty where it has none."""
        ...


@dataclass(frozen=True)
class FileImages:
    """Images in files of their own."""

    paths: Sequence[Path]
    labels: np.ndarray

    def image(self, row: int) -> Image.Image:
        return Image.open(self.paths[row])

    def locate(self, row: int) -> str:
        return f"{self.paths[row]}, row {row + 1} of the split, column 'image'"

    def name(self, row: int) -> str:
        return str(self.paths[row])


@dataclass(frozen=True)
class TableImages:
    """Images in a column of a table, as bytes or as paths that start from the table's folder."""

    table: Table
    column: str
    labels: np.ndarray
    root: Path = Path()

    def image(self, row: int) -> Image.Image:
        stored = self.table.rows[row][self.column] or {}
        if stored.get("bytes") is not None:
            return Image.open(io.BytesIO(stored["bytes"]))
        if stored.get("path") is None:
            raise OSError("there is no image")
        return Image.open(self.root / stored["path"])

    def locate(self, row: int) -> str:
        return self.table.locate(row, self.column)

    def name(self, row: int) -> str:
        stored = self.table.rows[row][self.column] or {}
        return str(stored.get("path") or "")


@dataclass(frozen=True)
class ArrayImages:
    """Images (n, H, W) or (n, H, W, 3) of 8 bits in memory."""

    pixels: np.ndarray
    labels: np.ndarray
    source: str

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row])

    def locate(self, row: int) -> str:
        return f"{self.source}, row {row + 1}, column 'image'"

    def name(self, row: int) -> str:
        return ""


class ImageData(DataModule):
    """Images with a class. Config key beside the common ones: `keep_in_memory`, decoded images stay in RAM."""

    augments = True

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.transform = Transform(image_node(dataset, backbone))
        self.images: dict[str, ImageRows] = {}
        self.augment = build_augment(dataset, backbone, self.transform)
        self._decoded: dict[tuple[str, int], Any] = {}

    @abstractmethod
    def read_images(self) -> dict[str, ImageRows]:
        """The splits as images and labels."""

    # ---- from the configs alone
    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        count = class_count(dataset)
        names = tuple(dataset.get("label_names") or (str(n) for n in range(count)))
        return Task(family_of(backbone).form(dataset), count, names, tuple(dataset["metrics"]))

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        shape = Transform(image_node(dataset, backbone)).shape
        several = asked(dataset).several
        labels = ((batch_size, class_count(dataset)), torch.float32) if several else ((batch_size,), torch.int64)
        return {"pixel_values": ((batch_size, *shape), torch.float32), "labels": labels}

    # ---- reading
    def read(self) -> dict[str, int]:
        self.images = self.read_images()
        for name, rows in self.images.items():
            unknown = np.asarray(rows.labels) < 0
            missing = int((unknown if unknown.ndim == 1 else unknown.any(1)).sum())
            self.notes += said_of_unlabelled(name, missing, len(rows.labels))
            if isinstance(rows, FileImages | TableImages):
                self.notes += said_of_contents(name, rows.image, len(rows.labels))
        if "train" in self.images and asked(self.dataset).classes:
            self.notes += said_of_classes(np.asarray(self.images["train"].labels), self.label_names)
        return {name: len(rows.labels) for name, rows in self.images.items()}

    def labels(self, split: str) -> np.ndarray:
        rows = len(self.split(split))  # reads the data, or says that there is no such split
        if asked(self.dataset).several:
            refuse_without_classes(self.dataset)
        found = np.asarray(self.images[split].labels, dtype=np.int64)[self.subset.get(split, slice(rows))]
        return np.where(found < 0, -100, found)

    def example(self, split: str, draw: Draw) -> Example:
        if draw.augmented and self.augment is not None:
            image = self._once(f"{split}, converted", self.transform.convert, split, draw.row)
            again = (draw.reading,) if draw.reading else ()
            pixels = self.augment(image, (self.seed, draw.epoch, draw.row, *again))
        else:
            pixels = self._once(split, self.transform, split, draw.row)
        labels = np.asarray(self.images[split].labels[draw.row])
        return {"pixel_values": pixels, "labels": np.where((labels < 0) | (not draw.scored), -100, labels).tolist()}

    def _once(self, kind: str, decode: Callable[[Image.Image], Any], split: str, row: int) -> Any:
        """An image decoded in one of two ways; with `keep_in_memory` only once."""
        if (kind, row) in self._decoded:
            return self._decoded[kind, row]
        found = decoded(decode, self.images[split], row)
        if self.dataset.get("keep_in_memory"):
            self._decoded[kind, row] = found
        return found

    def row_id(self, split: str, row: int) -> str:
        """The picture's file; nothing where it has none."""
        return self.images[split].name(row)

    def collate(self, examples: Sequence[Example]) -> Batch:
        kind = torch.float32 if asked(self.dataset).several else torch.int64
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples], dtype=kind),
        }

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.described.label_names

    @property
    def transform_description(self) -> dict[str, Any]:
        image = {key: self.backbone["image"][key] for key in ("size", "channels", "mean", "std", "interpolation")}
        return {"reads": "images", "image": image, "form": self.dataset["form"], "label_names": list(self.label_names)}


def decoded(transform: Callable[[Image.Image], Decoded], rows: ImageRows, row: int) -> Decoded:
    """One image as the backbone reads it, or as far as `transform` goes.

    Raises:
        UserError: it cannot be decoded; with its file and row.
    """
    try:
        with rows.image(row) as image:
            return transform(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"An image cannot be decoded: {error}",
            where=rows.locate(row),
            remedy="repair the file, or take it out of the data",
        ) from error


def table_images(table: Table, image_column: str | None, label_column: str | None) -> tuple[Table, str, str]:
    """A table with undecoded images, and the names of its image and label columns.

    Args:
        image_column, label_column: null: the first column of images; the first of class names, else `label` or `cls`.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    features = table.rows.features
    if image_column is None:
        image_column = next((n for n, f in features.items() if isinstance(f, ImageFeature)), "image")
    if label_column is None:
        named = [n for n, f in features.items() if isinstance(f, ClassLabel)]
        label_column = next((n for n in (*named, "label", "cls") if n in features), "label")
    table.require([image_column], "dataset.image_column")
    rows = table.rows
    if not isinstance(features[image_column], ImageFeature) or features[image_column].decode:
        rows = rows.cast_column(image_column, ImageFeature(decode=False))
    return replace(table, rows=rows), image_column, label_column

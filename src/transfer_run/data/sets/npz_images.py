"""Pictures in one .npz, as MedMNIST passes its sets on (Yang et al. 2023): arrays train_images, train_labels, ..."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transfer_run.data.images.image_data import ArrayImages, ImageData, ImageRows
from transfer_run.data.reading.labels import UNLABELLED
from transfer_run.data.reading.table import existing, path_of
from transfer_run.data.rows.splits import completed
from transfer_run.errors import UserError
from transfer_run.task import Task

NAMES = {"train": "train", "validation": "val", "test": "test"}
"""What the arrays of a split begin with."""


class NpzImages(ImageData):
    """`dataset.path`: a file with the arrays SPLIT_images (n, H, W) or (n, H, W, 3) of 8 bits, and SPLIT_labels (n,) or
    (n, 1), whole numbers from 0, for `train`, `val` and `test`. A split that is missing is taken from train
    (`dataset.split_shares`)."""

    _count: int | None = None

    @property
    def described(self) -> Task:
        """The number of classes comes from the data where the config leaves it open."""
        if self.dataset.get("num_labels") is None and self._count is None:
            self.setup()
        count = self.dataset.get("num_labels") or self._count
        return self.describe({**self.dataset, "num_labels": count}, self.backbone)

    def read_images(self) -> dict[str, ImageRows]:
        path = existing(path_of(self.dataset))
        arrays = _read(path)
        found = {
            split: (_pixels(arrays[f"{name}_images"], f"{name}_images", path), self._labels(arrays, name, path))
            for split, name in NAMES.items()
            if f"{name}_images" in arrays
        }
        if not found:
            raise UserError(
                f"There is no array of images: {', '.join(sorted(arrays)) or 'the file is empty'}.",
                where=str(path),
                remedy="name the arrays train_images, train_labels, val_images, val_labels, test_images, test_labels",
            )
        unread = sorted(name for name in arrays if name not in _wanted())
        if unread:
            self.notes.append(f"{', '.join(unread)} left out")
        self._count = self._count or 1 + max(int(labels.max(initial=0)) for _, labels in found.values())
        parts = completed(
            {split: labels for split, (_, labels) in found.items()}, self.dataset["split_shares"], str(path)
        )
        return {
            split: ArrayImages(found[source][0][rows], found[source][1][rows], f"{path}, {NAMES[source]}_images")
            for split, (source, rows) in parts.items()
        }

    def _labels(self, arrays: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
        """(n,); -1 in a test split without labels.

        Raises:
            UserError: none in training, another number than images, other than whole numbers from 0, or several a row.
        """
        where, rows = f"{path}, {name}_labels", len(arrays[f"{name}_images"])
        if f"{name}_labels" not in arrays:
            if name != "test":
                raise UserError("The images have no labels.", where=where, remedy="add the array to the file")
            self.notes.append("test: there are no labels")
            return np.full(rows, UNLABELLED)
        labels = arrays[f"{name}_labels"]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or len(labels) != rows:
            raise UserError(
                f"The labels have the shape {labels.shape}, and there are {rows} images of one class each.",
                where=where,
                remedy="give one number an image; several labels an image stand in tables (dataset=image_folder)",
            )
        count = self.dataset.get("num_labels")
        wrong = (labels < 0) | (labels != labels.astype(np.int64)) | (labels >= (count or np.inf))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"The label is {labels[row]}, no whole number from 0" + (f" to {count - 1}." if count else "."),
                where=f"{where}, row {row + 1}",
                remedy="correct it, or set dataset.num_labels",
            )
        return labels.astype(np.int64)


def _wanted() -> set[str]:
    return {f"{name}_{kind}" for name in NAMES.values() for kind in ("images", "labels")}


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
        UserError: it is none, is damaged, or holds Python objects, which are not read.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no archive")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = (
            "it holds Python objects, which are never read" if "pickle" in str(error) else str(error).splitlines()[0]
        )
        raise UserError(
            f"This is no .npz file of arrays: {reason.rstrip('.')}.",
            where=str(path),
            remedy="fetch it again, or name a .npz file with train_images and train_labels",
        ) from error


def _pixels(images: np.ndarray, name: str, path: Path) -> np.ndarray:
    """(n, H, W) or (n, H, W, 3), uint8.

    Raises:
        UserError: another shape or type.
    """
    if images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        return images
    raise UserError(
        f"The images are {images.dtype} of the shape {images.shape}.",
        where=f"{path}, {name}",
        remedy="store them as uint8, (n, height, width) or (n, height, width, 3)",
    )

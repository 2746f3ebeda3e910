"""Any images of one's own: class/image.png with or without train, validation and test folders, or tables of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transfer_run.data.images.image_data import SUFFIXES, FileImages, ImageData, ImageRows, TableImages, table_images
from transfer_run.data.reading.labels import class_labels
from transfer_run.data.reading.table import FORMATS, Table, existing, path_of, read_files, read_folder
from transfer_run.data.rows.splits import SPLITS, completed
from transfer_run.errors import UserError, nearest_names
from transfer_run.task import Task

_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


class ImageFolder(ImageData):
    """`dataset.path` is a folder of class folders, of split folders with class folders, of tables named by split
    (.parquet and others, images as bytes or paths), or one such table.

    A split that is missing is taken from train (`dataset.split_shares`). Class names come from the config
    (`label_names`, which also fixes their order), else from the data.
    """

    _names: tuple[str, ...] | None = None

    @property
    def described(self) -> Task:
        """Class names and their number come from the data where the config leaves them open."""
        if self.dataset.get("num_labels") is None and not self.dataset.get("label_names"):
            self.setup()
        names = list(self._names or self.dataset.get("label_names") or ()) or None
        return self.describe({**self.dataset, "label_names": names}, self.backbone)

    def read_images(self) -> dict[str, ImageRows]:
        path = path_of(self.dataset)
        found = self.found_images(existing(path))
        parts = completed({n: rows.labels for n, rows in found.items()}, self.dataset["split_shares"], path)
        return {name: chosen(found[source], rows) for name, (source, rows) in parts.items()}

    def found_images(self, folder: Path) -> dict[str, ImageRows]:
        """The splits that stand in `folder`, under the names that they have there."""
        if folder.is_file():
            return {"train": self._of_table(read_files([folder]))}
        inside = {name: [folder / n for n in names if (folder / n).is_dir()] for name, names in _FOLDERS.items()}
        if inside["train"] or inside["test"]:
            return self._of_folders({name: below[0] for name, below in inside.items() if below})
        if any(file.suffix in FORMATS for file in folder.iterdir()):
            return {name: self._of_table(t) for name, t in read_folder(str(folder), SPLITS).items()}
        return self._of_folders({"train": folder})

    def _of_table(self, table: Table) -> ImageRows:
        table, image, label = table_images(table, self.dataset.get("image_column"), self.dataset.get("label_column"))
        names = self._names or self.dataset.get("label_names")
        labels, self._names = class_labels(table, label, names, self.dataset.get("num_labels") or None)
        return TableImages(table, image, labels)

    def _of_folders(self, splits: Mapping[str, Path]) -> dict[str, ImageRows]:
        names = list(self.dataset.get("label_names") or class_folders(next(iter(splits.values()))))
        count = self.dataset.get("num_labels")
        if count is not None and count != len(names):
            raise UserError(
                f"There are {len(names)} class folders, dataset.num_labels is {count}.",
                where=str(next(iter(splits.values()))),
                remedy=f"dataset.num_labels={len(names)}",
            )
        self._names = tuple(names)
        return {name: _images_below(folder, names) for name, folder in splits.items()}


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, in order: the classes."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(
            "The folder holds neither class folders nor tables of images.",
            where=str(folder),
            remedy=f"put images into a folder a class (cat/1.png), or use tables ({', '.join(FORMATS[:-1])})",
        )
    return names


def _images_below(folder: Path, names: list[str]) -> FileImages:
    for name in class_folders(folder):
        if name not in names:
            raise UserError(
                f"The class '{name}' is not among the {len(names)} of the training split or of dataset.label_names.",
                where=str(folder / name),
                nearest=nearest_names(name, names),
                remedy="rename the folder, or name all classes: dataset.label_names=[...]",
            )
    paths, labels = [], []
    for number, name in enumerate(names):
        images = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        paths += images
        labels += [number] * len(images)
    if not paths:
        raise UserError("The folder holds no images.", where=str(folder), remedy=f"images end in {', '.join(SUFFIXES)}")
    return FileImages(paths, np.array(labels))


def chosen(images: ImageRows, rows: list[int]) -> ImageRows:
    """Some rows of a split."""
    if isinstance(images, FileImages):
        return FileImages([images.paths[row] for row in rows], images.labels[rows])
    if isinstance(images, TableImages):
        return TableImages(images.table.select(rows), images.column, images.labels[rows])
    raise TypeError(f"cannot choose rows of {type(images).__name__}")


def list_file(file: Path, root: Path, classes: int) -> FileImages:
    """Images named by a list of `path label` lines, paths relative to `root` (the usual form of VTAB-1k).

    Raises:
        UserError: a line without two fields, or a label outside 0 to `classes` - 1, with its row.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for row, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdigit() or int(label) >= classes:
            raise UserError(
                f"'{line.strip()}' is not `path label` with a label from 0 to {classes - 1}.",
                where=f"{file}, row {row}, column 'label'",
                remedy="correct the line, or set dataset.num_labels",
            )
        paths.append(root / path)
        labels.append(int(label))
    return FileImages(paths, np.array(labels, dtype=np.int64))

"""Any images of one's own: class/image.png with or without train, validation and test folders, or tables of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transfer_run.data.images.image_data import FileImages, ImageData, ImageRows, TableImages, table_images
from transfer_run.data.reading.labels import UNLABELLED, class_labels, shortened
from transfer_run.data.reading.pictures import SUFFIXES, check_whole, folders_in, pictures_below, said_of
from transfer_run.data.reading.table import FORMATS, Table, existing, is_table, path_of, read_files, read_folder
from transfer_run.data.reading.text_tables import dialect_of
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
        found = self._names or self.dataset.get("label_names")
        if self.dataset.get("num_labels") is None and not found:
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
            return {"train": self._of_table(read_files([folder], dialect_of(self.dataset)), folder.parent)}
        splits = split_folders(folder)
        if splits:
            others = [path.name for path in folders_in(folder) if path not in splits.values()]
            if others:
                self.notes.append(f"{folder}: {', '.join(others)} beside the splits' folders: left out")
            return self._of_folders(splits)
        if any(file.is_file() and is_table(file) for file in folder.iterdir()):
            tables = read_folder(str(folder), SPLITS, dialect_of(self.dataset))
            return {name: self._of_table(table, folder, name) for name, table in tables.items()}
        return self._of_folders({"train": folder})

    def _of_table(self, table: Table, root: Path = Path(), split: str = "train") -> ImageRows:
        table, image, label = table_images(table, self.dataset.get("image_column"), self.dataset.get("label_column"))
        self.notes += table.notes
        if label not in table.rows.column_names and (split == "test" or self.dataset["split_shares"]["test"] == 1):
            self.notes.append(f"test: there is no column '{label}'")
            return TableImages(table, image, np.full(len(table), UNLABELLED), root)
        table.require([label], "dataset.label_column")
        names = self._names or self.dataset.get("label_names")
        labels, self._names = class_labels(table, label, names, self.dataset.get("num_labels") or None)
        return TableImages(table, image, labels, root)

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
        return {name: self._images_below(name, folder, names) for name, folder in splits.items()}

    def _images_below(self, split: str, folder: Path, names: list[str]) -> FileImages:
        if split == "test" and not folders_in(folder):
            return self._unlabelled(folder)
        for name in class_folders(folder):
            if name not in names:
                raise UserError(
                    f"The class '{name}' is not among the {len(names)} of the training split or dataset.label_names.",
                    where=str(folder / name),
                    nearest=nearest_names(name, names),
                    remedy="rename the folder, or name all classes: dataset.label_names=[...]",
                )
        paths: list[Path] = []
        labels: list[int] = []
        left_out: Counter[str] = Counter()
        for number, name in enumerate(names):
            images, others = pictures_below(folder / name) if (folder / name).is_dir() else ([], Counter[str]())
            paths += images
            labels += [number] * len(images)
            left_out += others
        if not paths:
            remedy = f"images end in {', '.join(SUFFIXES)}"
            raise UserError("The folder holds no images.", where=str(folder), remedy=remedy)
        self._say(split, names, labels, left_out)
        if split != "train":
            check_whole(paths)
        return FileImages(paths, np.array(labels))

    def _unlabelled(self, folder: Path) -> FileImages:
        """Pictures to test on that stand in no class."""
        paths, left_out = pictures_below(folder)
        if not paths:
            remedy = f"images end in {', '.join(SUFFIXES)}"
            raise UserError("The folder holds no images.", where=str(folder), remedy=remedy)
        if said := said_of(left_out):
            self.notes.append(f"test: {said} left out")
        check_whole(paths)
        return FileImages(paths, np.full(len(paths), UNLABELLED))

    def _say(self, split: str, names: list[str], labels: list[int], left_out: Counter[str]) -> None:
        """What a user may not expect of a split, as notes."""
        if said := said_of(left_out):
            self.notes.append(f"{split}: {said} left out")
        without = [name for number, name in enumerate(names) if number not in set(labels)]
        if without:
            self.notes.append(f"{split}: no picture of {', '.join(without[:8])}{', ...' * (len(without) > 8)}")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, in order: the classes."""
    names = [path.name for path in folders_in(folder)]
    if not names:
        raise UserError(
            "The folder holds neither class folders nor tables of images.",
            where=str(folder),
            remedy=f"put images into a folder a class (cat/1.png), or use tables ({', '.join(FORMATS[:-1])})",
        )
    return names


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder` that stand for splits, whatever their case: those that hold class folders.

    A class may be called `train`: a folder so named with pictures in it is a class.

    Raises:
        UserError: two folders for one split, or some of those that are named so hold classes and others pictures.
    """
    found: dict[str, list[Path]] = {}
    for path in folders_in(folder):
        for split, names in _FOLDERS.items():
            if path.name.lower() in names:
                found.setdefault(split, []).append(path)
    twice = next((paths for paths in found.values() if len(paths) > 1), None)
    if twice:
        raise UserError(
            f"{twice[0].name} and {twice[1].name} stand for the same split.",
            where=str(folder),
            remedy="leave one of them, or put all pictures of the split into it",
        )
    paths = [path for below in found.values() for path in below]
    classes = [path for path in paths if not folders_in(path)]
    if len(paths) > 1 and classes == found.get("test"):
        classes = []  # pictures to test on may stand in no class
    if classes and len(classes) < len(paths):
        others = next(path for path in paths if path not in classes)
        raise UserError(
            f"{others.name} holds class folders as a split does, {classes[0].name} holds none.",
            where=str(folder),
            remedy="give every split a folder a class",
        )
    return {} if classes else {split: found[split][0] for split in SPLITS if split in found}


def chosen(images: ImageRows, rows: list[int]) -> ImageRows:
    """Some rows of a split."""
    if isinstance(images, FileImages):
        return FileImages([images.paths[row] for row in rows], images.labels[rows])
    if isinstance(images, TableImages):
        return TableImages(images.table.select(rows), images.column, images.labels[rows], images.root)
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
                f"'{shortened(line.strip())}' is not `path label` with a label from 0 to {classes - 1}.",
                where=f"{file}, row {row}, column 'label'",
                remedy="correct the line, or set dataset.num_labels",
            )
        paths.append(root / path)
        labels.append(int(label))
    return FileImages(paths, np.array(labels, dtype=np.int64))

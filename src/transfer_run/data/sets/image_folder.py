"""Any images of one's own: class/image.png with or without train, validation and test folders, or tables of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_run.data.asked import asked
from transfer_run.data.images.image_data import FileImages, ImageData, ImageRows, TableImages, table_images
from transfer_run.data.images.levels import BOTH, CLASS, below_outer, both_names, by_domain, check_levels
from transfer_run.data.images.some_classes import WHERE as CLASSES
from transfer_run.data.images.some_classes import chosen, count_of, numbers_of, only
from transfer_run.data.reading.archive import place_of
from transfer_run.data.reading.labels import UNLABELLED, class_labels, said_of_numbers, shortened
from transfer_run.data.reading.pictures import (
    SUFFIXES,
    check_whole,
    folders_in,
    pictures_below,
    said_of,
    sorted_out,
    split_of,
)
from transfer_run.data.reading.several import Several, several_labels
from transfer_run.data.reading.table import (
    FORMATS,
    Table,
    existing,
    fitting,
    is_pattern,
    is_table,
    path_of,
    read_files,
    read_folder,
    split_tables,
)
from transfer_run.data.reading.text_tables import dialect_of, kind_of
from transfer_run.data.rows.splits import SPLITS, completed
from transfer_run.errors import UserError, nearest_names
from transfer_run.task import Task


class ImageFolder(ImageData):
    """`dataset.path` is a folder of class folders, of split folders with class folders, of tables named by split
    (.parquet and others, images as bytes or paths), such a folder as a .zip, one such table, or a pattern of pictures
    or tables. Several labels a picture (`dataset.form=multi_label`) stand in tables.

    A split that is missing is taken from train (`dataset.split_shares`). Class names come from the config
    (`label_names`, which also fixes their order), else from the data; `dataset.classes` takes some of them.
    """

    _names: tuple[str, ...] | None = None

    @property
    def described(self) -> Task:
        """Class names and their number come from the data where the config leaves them open."""
        found = self._names or self.dataset.get("label_names")
        some = self.dataset.get("classes") is not None
        if not self._names and (some or (self.dataset.get("num_labels") is None and not found)):
            self.setup()
        names = list(self._names or self.dataset.get("label_names") or ()) or None
        if some:
            return self.describe({**self.dataset, "classes": names}, self.backbone)
        return self.describe({**self.dataset, "label_names": names}, self.backbone)

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        """`num_labels` and `label_names` are those of all classes of the data, where only some of them are taken."""
        check_levels(dataset)
        classes = dataset.get("classes")
        if classes is None:
            return super().describe(dataset, backbone)
        if asked(dataset).several:
            raise UserError(
                "Of pictures with several labels no classes are chosen.",
                where=f"{CLASSES}, dataset.form={dataset['form']}",
                remedy=f"{CLASSES}=null, or a table of fewer labels",
            )
        names = [str(name) for name in classes] if not isinstance(classes, str) else None
        return super().describe({**dataset, "num_labels": count_of(classes), "label_names": names}, backbone)

    def read_images(self) -> dict[str, ImageRows]:
        path = path_of(self.dataset)
        check_levels(self.dataset)
        place = place_of(path, self.notes)
        found = self._fitting(place) if is_pattern(place) else self.found_images(existing(place))
        strata = {n: rows.labels if rows.labels.ndim == 1 else np.zeros(len(rows.labels)) for n, rows in found.items()}
        parts = completed(strata, self.dataset["split_shares"], path)
        return self.of_classes({name: chosen(found[source], rows) for name, (source, rows) in parts.items()})

    def of_classes(self, images: dict[str, ImageRows]) -> dict[str, ImageRows]:
        """The rows of `dataset.classes` alone; all where it names none."""
        if self.dataset.get("classes") is None:
            return images
        names = list(self._names or self.dataset.get("label_names") or ())
        numbers = numbers_of(self.dataset["classes"], names)
        self._names = tuple(names[number] for number in numbers)
        self.notes.append(f"{len(numbers)} of {len(names)} classes are taken (dataset.classes)")
        return {split: only(rows, numbers) for split, rows in images.items()}

    def found_images(self, folder: Path) -> dict[str, ImageRows]:
        """The splits that stand in `folder`, under the names that they have there."""
        if (levels := self.dataset.get("levels") or CLASS) != CLASS:
            return self._of_levels(folder, levels)
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

    def _of_levels(self, folder: Path, levels: str) -> dict[str, ImageRows]:
        """Pictures two folders deep."""
        if folder.is_file() or split_folders(folder):
            raise UserError(
                f"dataset.levels={levels} is of a folder of folders of classes, which "
                f"{'a file' if folder.is_file() else 'a folder of splits'} is not.",
                where=f"dataset.path={folder}",
                remedy="dataset.levels=class, or the folder that holds the outer folders",
            )
        found, left_out = below_outer(folder)
        if levels == BOTH:
            splits = {"train": both_names(found)}
        else:
            splits = by_domain(found, list(self.dataset["held_out"]), folder)
            tested = [name for name in found if name in self.dataset["held_out"]]
            trained = [name for name in found if name not in tested]
            self.notes.append(f"domains: {', '.join(trained)} are trained on, {', '.join(tested)} tested")
        names = self._class_names(sorted(splits["train"]), str(folder))
        return {
            split: self._of_pictures(split, classes, names, left_out if split == "train" else {}, folder)
            for split, classes in splits.items()
        }

    def _fitting(self, pattern: str) -> dict[str, ImageRows]:
        """The pictures, or the tables of them, that a pattern fits."""
        files = fitting(pattern)
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
        tables = [file for file in files if is_table(file) and kind_of(file) != ".txt"]
        if bool(pictures) == bool(tables):
            raise UserError(
                f"The pattern fits {'pictures and tables' if pictures else 'no picture and no table of pictures'}.",
                where=f"dataset.path={pattern}",
                remedy="let it fit CLASS/PICTURE ('photos/*/*.png'), or tables ('shards/*.parquet'); ** goes through "
                "folders",
            )
        if tables:
            read, folder = split_tables(self.dataset, SPLITS, pattern)
            return {name: self._of_table(table, folder, name) for name, table in read.items()}
        splits = sorted_out(pictures)
        left_out = Counter(file.suffix.lower() or file.name for file in files if file not in set(pictures))
        names = self._class_names(sorted(splits.get("train", next(iter(splits.values())))), pattern)
        return {
            split: self._of_pictures(split, classes, names, left_out if split == next(iter(splits)) else {}, pattern)
            for split, classes in splits.items()
        }

    def _of_table(self, table: Table, root: Path = Path(), split: str = "train") -> ImageRows:
        table, image, label = table_images(table, self.dataset.get("image_column"), self.dataset.get("label_column"))
        self.notes += table.notes
        if label not in table.rows.column_names and (split == "test" or self.dataset["split_shares"]["test"] == 1):
            self.notes.append(f"test: there is no column '{label}'")
            return TableImages(table, image, self._without_labels(len(table)), root)
        table.require([label], "dataset.label_column")
        names, count = self._names or self.dataset.get("label_names"), self.dataset.get("num_labels") or None
        if asked(self.dataset).several:
            several, self._names = several_labels(table, label, names, count)
            return TableImages(table, image, _matrix(several, len(self._names)), root)
        labels, self._names = class_labels(table, label, names, count)
        self.notes += said_of_numbers(table, label, self.dataset.get("label_names"))
        return TableImages(table, image, labels, root)

    def _class_names(self, found: list[str], where: str) -> list[str]:
        """The classes in order, of `found` where the config names none."""
        names = list(self.dataset.get("label_names") or found)
        count = self.dataset.get("num_labels")
        if asked(self.dataset).several:
            raise UserError(
                "A folder says one class of its pictures; several labels stand in a table.",
                where=f"{where}, dataset.form={self.dataset['form']}",
                remedy="name a table of pictures with a column of lists or of names between bars (cat|dog)",
            )
        if count is not None and count != len(names):
            raise UserError(
                f"There are {len(names)} class folders, dataset.num_labels is {count}.",
                where=where,
                remedy=f"dataset.num_labels={len(names)}",
            )
        self._names = tuple(names)
        return names

    def _of_folders(self, splits: Mapping[str, Path]) -> dict[str, ImageRows]:
        first = next(iter(splits.values()))
        names = self._class_names(class_folders(first), str(first))
        return {name: self._images_below(name, folder, names) for name, folder in splits.items()}

    def _images_below(self, split: str, folder: Path, names: list[str]) -> FileImages:
        if split == "test" and not folders_in(folder):
            return self._unlabelled(folder)
        below = {name: pictures_below(folder / name) for name in class_folders(folder)}
        left_out = sum((others for name, (_, others) in below.items() if name in names), Counter[str]())
        return self._of_pictures(split, {name: found for name, (found, _) in below.items()}, names, left_out, folder)

    def _of_pictures(
        self,
        split: str,
        classes: Mapping[str, list[Path]],
        names: list[str],
        left_out: Mapping[str, int],
        where: Path | str,
    ) -> FileImages:
        """The pictures of each class of a split, in the order of `names`."""
        for name, pictures in classes.items():
            if name not in names:
                raise UserError(
                    f"The class '{name}' is not among the {len(names)} of the training split or dataset.label_names.",
                    where=str(pictures[0].parent if pictures else f"{where}/{name}"),
                    nearest=nearest_names(name, names),
                    remedy="rename the folder, or name all classes: dataset.label_names=[...]",
                )
        paths = [path for name in names for path in classes.get(name, ())]
        labels = [number for number, name in enumerate(names) for _ in classes.get(name, ())]
        if not paths:
            remedy = f"images end in {', '.join(SUFFIXES)}"
            raise UserError("The folder holds no images.", where=str(where), remedy=remedy)
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
        return FileImages(paths, self._without_labels(len(paths)))

    def _without_labels(self, rows: int) -> np.ndarray:
        several = asked(self.dataset).several
        return np.full((rows, len(self._names or self.label_names)) if several else rows, UNLABELLED)

    def _say(self, split: str, names: list[str], labels: list[int], left_out: Mapping[str, int]) -> None:
        """What a user may not expect of a split, as notes."""
        if said := said_of(left_out):
            self.notes.append(f"{split}: {said} left out")
        without = [name for number, name in enumerate(names) if number not in set(labels)]
        if without:
            self.notes.append(f"{split}: no picture of {', '.join(without[:8])}{', ...' * (len(without) > 8)}")


def _matrix(labels: Sequence[Several], classes: int) -> np.ndarray:
    """(n, classes), 1 where a picture has a label; a row of -1 where it is not known which it has."""
    found = np.zeros((len(labels), classes), dtype=np.int64)
    for row, numbers in enumerate(labels):
        found[row, slice(None) if numbers is None else list(numbers)] = UNLABELLED if numbers is None else 1
    return found


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
        if split := split_of(path.name):
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

"""VTAB-1k (Zhai et al. 2019, arXiv 1910.04867): 19 image tasks with 1,000 training images each."""

from __future__ import annotations

from pathlib import Path

from transfer_run.data.images.image_data import ImageRows
from transfer_run.data.images.some_classes import chosen
from transfer_run.data.reading.table import existing, read_hub
from transfer_run.data.rows.splits import SPLITS, shuffled
from transfer_run.data.sets.image_folder import ImageFolder, list_file
from transfer_run.errors import UserError

LISTS = {"train": "train800.txt", "validation": "val200.txt", "both": "train800val200.txt", "test": "test.txt"}


class Vtab(ImageFolder):
    """One task. `dataset.path` is its folder, or the folder above, which holds one of the task's name.

    A folder with the lists `train800.txt`, `val200.txt`, `test.txt` (lines `images/train/000001.jpg 3`, as the suite is
    usually passed on) has the official rows. Class folders, tables and the hub hold whole data sets: the 1,000 rows
    are then drawn from train with a fixed seed and are not the official ones, which `notes` says.

    `dataset.protocol`:
        train800val200: all 1,000 rows train; validation shows 200 of the same rows and may choose nothing. What the
            papers report: hyper-parameters found before, test accuracy of the last epoch.
        train800: 800 rows train, the other 200 validate; for the search.
        all: every training row; the splits that the data have, on the hub 200 rows of train to validate.
    """

    def read_images(self) -> dict[str, ImageRows]:
        if self.dataset["protocol"] == "all" and self.dataset.get("path"):
            return super().read_images()
        folder = self._folder()
        if folder is not None and (folder / LISTS["test"]).is_file():
            return self._of_lists(folder)
        found = self.found_images(folder) if folder is not None else self._from_hub()
        missing = [name for name in ("train", "test") if name not in found]
        if missing:
            raise UserError(
                f"The split '{missing[0]}' is missing.",
                where=str(folder or f"{self.dataset['hub']} on the hub"),
                remedy="VTAB-1k needs train and test",
            )
        return self._thousand(found)

    def _folder(self) -> Path | None:
        path = self.dataset.get("path")
        if not path:
            return None
        folder = existing(path)
        task = folder / str(self.dataset["name"]).rpartition("/")[2]
        return task if task.is_dir() else folder

    def _of_lists(self, folder: Path) -> dict[str, ImageRows]:
        classes = self.described.num_labels

        def read(name: str) -> ImageRows:
            return list_file(existing(str(folder / LISTS[name])), folder, classes)

        search = self.dataset["protocol"] == "train800"
        return {
            "train": read("train" if search else "both"),
            "validation": read("validation"),
            "test": read("test"),
        }

    def _from_hub(self) -> dict[str, ImageRows]:
        tables = read_hub(self.dataset["hub"], None, self.dataset["revision"], SPLITS)
        return {name: self._of_table(table) for name, table in tables.items()}

    def _thousand(self, found: dict[str, ImageRows]) -> dict[str, ImageRows]:
        train = found["train"]
        order = shuffled(len(train.labels))
        if self.dataset["protocol"] == "all":  # a data set of the hub without a validation split
            return {
                "train": chosen(train, order[200:]),
                "validation": chosen(train, order[:200]),
                "test": found["test"],
            }
        if len(order) < 1000:
            raise UserError(
                f"VTAB-1k draws 1,000 training images, there are {len(order)}.",
                where=train.locate(0),
                remedy="dataset.protocol=all trains on what there is",
            )
        self.notes.append("the 1,000 training rows were drawn with a fixed seed; they are not the official ones")
        search = self.dataset["protocol"] == "train800"
        return {
            "train": chosen(train, order[: 800 if search else 1000]),
            "validation": chosen(train, order[800:1000]),
            "test": found["test"],
        }

"""GLUE (Wang et al. 2018, arXiv 1804.07461): nine tasks of one or two sentences, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_run.data.asked import asked
from transfer_run.data.reading.labels import check_texts, class_labels, value_labels
from transfer_run.data.reading.table import Table, existing, is_table, read_folder, read_hub
from transfer_run.data.reading.text_tables import dialect_of
from transfer_run.data.rows.splits import shuffled
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.text_data import TextData
from transfer_run.errors import UserError
from transfer_run.task import Task

HALVED = ("rte", "mrpc", "cola", "stsb", "wnli")
"""Small tasks; `wnli` is not in the LST paper and is treated like them."""
VALIDATION_ROWS = 1000
HIGHEST = 5.0
"""STS-B's largest score; the smallest is 0."""


class Glue(TextData):
    """One task. `dataset.path` is a folder of files named by split, or the folder above, which holds one of the
    task's name; without it the hub is asked.

    `dataset.splits`:
        lst: those of the LST paper (arXiv 2206.06522, its code), in which every test row has a label. rte, mrpc, cola,
            stsb: the official validation set, shuffled (torch generator, seed 42) and halved. sst2, qnli, qqp: the
            first 1,000 of the shuffled training set validate, the official validation set tests. mnli: mismatched
            validates, matched tests.
        glue: the official ones (mnli: matched); GLUE's test rows have no labels, so there is no test score.
    """

    value_step = 0.2  # T5's STS-B: 21 answers, "0.0" to "5.0" (Raffel et al. 2020, section 2.4)

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        bins = dataset.get("bins")
        if bins and dataset["num_labels"] != bins:
            raise UserError(
                f"{bins} classes of equal width are {bins} labels, not {dataset['num_labels']}.",
                where="dataset.num_labels",
                remedy=f"dataset.bins={dataset['num_labels']}, alone",
            )
        return super().describe(dataset, backbone)

    def read_rows(self) -> dict[str, TextRows]:
        task = self.dataset.get("subset") or str(self.dataset["name"]).rpartition("/")[2]
        wanted: tuple[str, ...] = ("train", "validation", "test")
        if task == "mnli":
            wanted = ("train", "validation_matched", "validation_mismatched", "test_matched")
        tables = self._tables(task, wanted)
        self.notes += [note for table in tables.values() for note in table.notes]
        chosen = self._as_in_lst(task, tables) if self.dataset["splits"] == "lst" else self._official(task, tables)
        return {name: self._labelled(table) for name, table in chosen.items()}

    def _tables(self, task: str, wanted: Sequence[str]) -> dict[str, Table]:
        path = self.dataset.get("path")
        if not path:
            return read_hub(self.dataset["hub"], task, self.dataset["revision"], wanted)
        folder: Path = existing(path)
        if (folder / task).is_dir() and not any(map(is_table, folder.iterdir())):
            folder = folder / task
        return read_folder(str(folder), wanted, dialect_of(self.dataset))

    def _as_in_lst(self, task: str, tables: dict[str, Table]) -> dict[str, Table]:
        if task == "mnli":
            return {
                "train": self._given(tables, "train"),
                "validation": self._given(tables, "validation_mismatched"),
                "test": self._given(tables, "validation_matched"),
            }
        train, validation = self._given(tables, "train"), self._given(tables, "validation")
        if task in HALVED:
            order = shuffled(len(validation))
            half = len(order) // 2
            return {
                "train": train,
                "validation": validation.select(order[:half]),
                "test": validation.select(order[half:]),
            }
        order = shuffled(len(train))
        return {
            "train": train.select(order[VALIDATION_ROWS:]),
            "validation": train.select(order[:VALIDATION_ROWS]),
            "test": validation,
        }

    def _official(self, task: str, tables: dict[str, Table]) -> dict[str, Table]:
        names = ("train", "validation_matched", "test_matched") if task == "mnli" else ("train", "validation", "test")
        return {plain.partition("_")[0]: self._given(tables, plain) for plain in names}

    def _given(self, tables: dict[str, Table], name: str) -> Table:
        if name not in tables:
            raise UserError(
                f"The split '{name}' is missing.",
                where=f"{self.dataset.get('path') or self.dataset['hub']}, which has {', '.join(tables)}",
                remedy="add its file, or choose the other splits: dataset.splits=lst|glue",
            )
        return tables[name]

    def _labelled(self, table: Table) -> TextRows:
        columns, label = list(self.dataset["text_columns"]), self.dataset["label_column"]
        check_texts(table, columns)
        rows = table.rows.select_columns(columns)
        if bins := self.dataset.get("bins"):
            values = value_labels(table, label, unlabelled=-1.0)
            for row in np.flatnonzero((values < 0) | (values > HIGHEST)):
                raise UserError(
                    f"{values[row]:g} is not between 0 and {HIGHEST:g}, which is cut into {bins} classes.",
                    where=table.locate(int(row), label),
                    remedy="correct the row, or leave it empty",
                )
            return TextRows(rows, binned(values, int(bins)))
        if asked(self.dataset).value:
            return TextRows(rows, value_labels(table, label, unlabelled=-1.0))  # GLUE marks a missing score by -1
        labels: np.ndarray = class_labels(table, label, self.dataset["label_names"], self.dataset["num_labels"])[0]
        return TextRows(rows, labels)


def binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Values of 0 to `HIGHEST` as classes of equal width, the lower end being in: 25 of STS-B's are 0.2 wide. NaN: -1.

    Fisher-weighted averaging merges bodies that were trained on classes (Matena and Raffel 2022, section 4.3).
    """
    known = ~np.isnan(values)
    place = np.floor(np.round(np.where(known, values, 0.0) * bins / HIGHEST, 6)).astype(np.int64)
    return np.where(known, np.clip(place, 0, bins - 1), -1)

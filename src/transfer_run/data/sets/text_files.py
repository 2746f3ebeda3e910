"""Any text of one's own: tables (.csv, .tsv, .json, .jsonl, .parquet) or plain .txt, a file or a folder of splits."""

from __future__ import annotations

import math

import numpy as np

from transfer_run.data.asked import asked
from transfer_run.data.reading.labels import (
    UNLABELLED,
    check_texts,
    check_trained,
    class_labels,
    said_of_numbers,
    value_labels,
)
from transfer_run.data.reading.several import several_labels
from transfer_run.data.reading.table import Table, path_of, split_tables
from transfer_run.data.rows.splits import SPLITS, completed
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.text_data import TextData
from transfer_run.task import Task


class TextFiles(TextData):
    """`dataset.path` is one file, a pattern of files, or a folder of files named train, validation, test.

    A split that is missing is taken from train (`dataset.split_shares`; classes keep their shares). `dataset.form`
    says what is asked: classification, multi_label, regression, text_to_text (`label_column` holds the answers),
    language_modeling or span_corruption (no label column). Class names come from `dataset.label_names`, else from the
    data.
    """

    _names: tuple[str, ...] | None = None

    @property
    def described(self) -> Task:
        """Class names and their number come from the data where the config leaves them open."""
        dataset = self.dataset
        if asked(dataset).named and not (dataset.get("num_labels") or dataset.get("label_names")):
            if self._names is None:
                self.setup()
            return self.describe({**dataset, "label_names": list(self._names or ())}, self.backbone)
        return super().described

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._names or super().label_names

    def read_rows(self) -> dict[str, TextRows]:
        tables, _ = split_tables(self.dataset, SPLITS)
        self.notes += [note for table in tables.values() for note in table.notes]
        rows = {name: self._rows(table, name) for name, table in tables.items()}
        strata = {name: self._strata(rows[name]) for name in rows}
        parts = completed(strata, self.dataset["split_shares"], path_of(self.dataset))
        return {name: _chosen(rows[source], picked) for name, (source, picked) in parts.items()}

    def _rows(self, table: Table, split: str) -> TextRows:
        columns, label, row = list(self.dataset["text_columns"]), self.dataset["label_column"], asked(self.dataset)
        check_texts(table, columns)
        rows = table.rows.select_columns(columns)
        tested = split == "test" or self.dataset["split_shares"]["test"] == 1
        if tested and not row.running and label not in table.rows.column_names:
            self.notes.append(f"test: there is no column '{label}'")
            nothing = UNLABELLED if row.classes else math.nan
            return TextRows(rows, np.full(len(table), nothing) if row.labelled else [None] * len(table))
        if row.classes:
            names = self._names or self.dataset.get("label_names")
            labels, self._names = class_labels(table, label, names, self.dataset.get("num_labels"))
            self.notes += said_of_numbers(table, label, self.dataset.get("label_names"))
            return TextRows(rows, labels)
        if row.several:
            names = self._names or self.dataset.get("label_names")
            several, self._names = several_labels(table, label, names, self.dataset.get("num_labels"))
            return TextRows(rows, several)
        if row.value:
            values = value_labels(table, label)
            if split == "train" and not tested:
                check_trained(table, label, values)
            return TextRows(rows, values)
        if row.running:
            return TextRows(rows, None)
        table.require([label], "dataset.label_column")
        return TextRows(rows, [None if answer is None else str(answer) for answer in table.rows[label]])

    def _strata(self, rows: TextRows) -> np.ndarray:
        return np.asarray(rows.labels) if asked(self.dataset).classes else np.zeros(len(rows))


def _chosen(rows: TextRows, picked: list[int]) -> TextRows:
    labels = rows.labels
    if isinstance(labels, np.ndarray):
        labels = labels[picked]
    elif labels is not None:
        labels = [labels[i] for i in picked]
    return TextRows(rows.rows.select(picked), labels)  # type: ignore[attr-defined]

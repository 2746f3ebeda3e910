"""Medical question pairs (McCreery et al. 2020): do two questions, both written by doctors, ask the same?

Each of 1,524 real questions stands in two pairs: rewritten with the same meaning, and asked about something else with
much the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from transfer_run.data.reading.labels import check_texts, class_labels
from transfer_run.data.reading.table import Table, existing, read_folder, read_hub, table_of
from transfer_run.data.reading.text_tables import headerless
from transfer_run.data.rows.splits import SPLITS, shuffled
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.text_data import TextData
from transfer_run.errors import UserError

FIELDS = ("dr_id", "question_1", "question_2", "label")


@dataclass(frozen=True)
class Row:
    """One line of the data's own file."""

    doctor: str
    first: str
    second: str
    label: int


class MedicalQuestionPairs(TextData):
    """`dataset.path`: mqp.csv as it is published (four columns, no header), or a folder of files named by split with
    the columns of `dataset.text_columns` and a label; without a path the hub is asked.

    Files without splits are split by `dataset.split_by`: `question` keeps the pairs of an original question together
    (a split by rows would test on rewritten training questions), `doctor` all pairs that one doctor wrote.
    """

    def read_rows(self) -> dict[str, TextRows]:
        tables = self._tables()
        self.notes += [note for table in tables.values() for note in table.notes]
        columns = list(self.dataset["text_columns"])
        if "test" not in tables:
            whole = tables["train"]
            groups = [str(g) for g in whole.rows["doctor" if self.dataset["split_by"] == "doctor" else columns[0]][:]]
            parts = grouped_parts(groups, self.dataset["split_shares"], self.dataset["split_seed"])
            tables = {name: whole.select(rows) for name, rows in zip(SPLITS, parts, strict=True)}
        tables["train"] = self._share(tables["train"], columns[0])
        return {name: self._labelled(table, columns) for name, table in tables.items()}

    def _tables(self) -> dict[str, Table]:
        path = self.dataset.get("path")
        if path and existing(path).is_dir():
            return read_folder(path, SPLITS)
        columns = list(self.dataset["text_columns"])
        if path:
            rows = parsed(Path(path))
            return {"train": _table(rows, columns, path)}
        loaded = read_hub(self.dataset["hub"], None, self.dataset["revision"], ["train"])["train"]
        names = dict(zip(FIELDS, ("doctor", *columns, "label"), strict=True))
        known = {old: new for old, new in names.items() if old in loaded.rows.column_names}
        return {"train": replace(loaded, rows=loaded.rows.rename_columns(known))}

    def _share(self, train: Table, question: str) -> Table:
        """`dataset.train_fraction` of the original questions of the training split."""
        questions = [str(q) for q in train.rows[question][:]]
        names = list(dict.fromkeys(questions))
        order = shuffled(len(names), self.dataset["split_seed"])
        kept = {names[i] for i in order[: max(1, round(self.dataset["train_fraction"] * len(names)))]}
        return train.select([i for i, q in enumerate(questions) if q in kept])

    def _labelled(self, table: Table, columns: list[str]) -> TextRows:
        check_texts(table, columns)
        labels, _ = class_labels(table, self.dataset["label_column"], self.dataset["label_names"], 2)
        return TextRows(table.rows.select_columns(columns), labels)


def parsed(file: Path) -> list[Row]:
    """The rows of mqp.csv.

    Raises:
        UserError: a row has other than four fields, or a label that is neither 0 nor 1.
    """
    table = headerless(file, FIELDS)
    wrong = next((i for i, label in enumerate(table["label"].to_pylist()) if label.strip() not in ("0", "1")), None)
    if wrong is not None:
        raise UserError(
            f"The label is {table['label'][wrong].as_py()!r}, neither 0 nor 1.",
            where=f"{file}, row {wrong + 1}, column 'label'",
            remedy="give the file as it is published, or a folder of files named train, validation, test",
        )
    fields = zip(*(table[name].to_pylist() for name in FIELDS), strict=True)
    return [Row(doctor, first, second, int(label)) for doctor, first, second, label in fields]


def _table(rows: Sequence[Row], columns: Sequence[str], source: str) -> Table:
    from datasets import Dataset

    values: dict[str, list[str] | list[int]] = {
        columns[0]: [row.first for row in rows],
        columns[1]: [row.second for row in rows],
        "label": [row.label for row in rows],
        "doctor": [row.doctor for row in rows],
    }
    return table_of(Dataset.from_dict(values), source)


def grouped_parts(groups: Sequence[str], shares: dict[str, float], seed: int) -> list[list[int]]:
    """Rows of train, validation and test; a group is in one of them only.

    Args:
        groups: the group of each row.
        shares: `validation` and `test`, as shares of the groups.
    """
    names = list(dict.fromkeys(groups))
    order = shuffled(len(names), seed)
    sizes = [max(1, round(shares[name] * len(names))) for name in ("validation", "test")]
    cuts = np.cumsum([len(names) - sum(sizes), sizes[0]])
    part_of = {names[i]: part for part, rows in enumerate(np.split(np.array(order), cuts)) for i in rows}
    parts: list[list[int]] = [[], [], []]
    for row, group in enumerate(groups):
        parts[part_of[group]].append(row)
    return parts

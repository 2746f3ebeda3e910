"""Your own series, a table with a column of times: .csv, .tsv, .json, .jsonl or .parquet, plain or compressed.

    date,load,temperature                 dataset.path=FILE dataset.channels=[load,temperature]
    2016-07-01 00:00:00,5.827,30.531      `dataset.time_column`, then as many channels as you name

The benchmarks ETTh1, ETTh2, ETTm1 and ETTm2 (Zhou et al. 2021, arXiv 2012.07436) are such tables with fixed splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_run.data.reading.table import Table, existing, path_of, read_files
from transfer_run.data.reading.text_tables import dialect_of
from transfer_run.data.series.series_data import SeriesData, named_channels
from transfer_run.data.series.steps import ROWS, Regular, parsed_step, parsed_times, regular
from transfer_run.errors import UserError
from transfer_run.task import Task

MISSING = ("", "nan", "na", "n/a", "null", "none", "-")
"""What stands in a text table where nothing was measured, in small letters."""


class SeriesFile(SeriesData):
    """Columns of one table; see the module. Nothing of the file is written anywhere."""

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        if dataset["time_step"] not in (None, ROWS):
            parsed_step(str(dataset["time_step"]))
        return super().describe(dataset, backbone)

    def table_file(self) -> Path:
        """The table.

        Raises:
            UserError: there is none.
        """
        found = existing(path_of(self.dataset))
        if found.is_dir():
            raise UserError("A series is one table, not a folder.", where=f"dataset.path={found}", remedy="name a file")
        return found

    def read_series(self) -> Regular:
        table = read_files([self.table_file()], dialect_of(self.dataset))
        self.notes += table.notes
        channels, column = named_channels(self.dataset)[0], str(self.dataset["time_column"])
        table.require([column], "dataset.time_column")
        table.require(channels, "dataset.channels")
        left = [name for name in table.rows.column_names if name not in (column, *channels)]
        if left:
            self.notes.append(f"columns that are no channel: {', '.join(left[:12])}{', ...' * (len(left) > 12)}")

        def locate(row: int) -> str:
            return table.locate(row, column)

        times = [_time(value) for value in table.rows[column][:]]
        seconds = parsed_times(times, self.dataset["time_format"], locate)
        values = np.stack([_numbers(table, name, table.rows[name][:]) for name in channels], 1)
        step = None if self.dataset["time_step"] is None else str(self.dataset["time_step"])
        return regular(seconds, values, step, locate, self.notes)


def _time(value: Any) -> str:
    return "" if value is None else str(value)


def _numbers(table: Table, column: str, cells: Sequence[Any]) -> np.ndarray:
    """The column as float64 (rows,), NaN where it is empty.

    Raises:
        UserError: a cell holds something else than a finite number.
    """
    out = np.empty(len(cells))
    for row, cell in enumerate(cells):
        if cell is None or str(cell).strip().lower() in MISSING:
            out[row] = np.nan
            continue
        try:
            out[row] = float(cell)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{str(cell)[:40]!r} is no number.",
                where=table.locate(row, column),
                remedy="write numbers with a point, and leave the field empty where nothing was measured",
            ) from error
        if np.isinf(out[row]):
            raise UserError("The value is infinite.", where=table.locate(row, column), remedy="leave the field empty")
    return out

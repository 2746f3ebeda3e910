"""ETTh1, ETTh2, ETTm1, ETTm2: two electricity transformers in China, July 2016 to July 2018 (Zhou et al. 2021, arXiv
2012.07436; CC BY-ND 4.0, so the files are read as they are and changed copies are made in memory alone)."""

from __future__ import annotations

from pathlib import Path

from transfer_run.data.reading.table import existing, path_of
from transfer_run.data.sets.series_file import SeriesFile


class ETT(SeriesFile):
    """`dataset.path`: the file, or the folder that holds it under its own name (`dataset.file_name`)."""

    def table_file(self) -> Path:
        given = existing(path_of(self.dataset))
        return existing(str(given / str(self.dataset["file_name"]))) if given.is_dir() else given

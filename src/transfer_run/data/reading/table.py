"""Rows and columns from local files or the hub, read through `datasets`; every complaint names file, row and column."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfer_run.errors import UserError, nearest_names

FORMATS = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt")
_ALIASES = {"validation": ("validation", "val", "valid", "dev")}


@dataclass(frozen=True)
class Table:
    """A split, or a part of one, that remembers where its rows came from.

    Attributes:
        rows: a `datasets.Dataset`.
        source: the file or hub data set that the rows stand in.
        numbers: row numbers in `source`, counted from 1 (a header is not counted).
    """

    rows: Any
    source: str
    numbers: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, indices: Sequence[int]) -> Table:
        return Table(self.rows.select(indices), self.source, self.numbers[np.asarray(indices, dtype=int)])

    def locate(self, index: int, column: str) -> str:
        """Where a value stands, for an error's `where`."""
        return f"{self.source}, row {self.numbers[index]}, column '{column}'"

    def require(self, columns: Iterable[str], key: str) -> None:
        """Raise `UserError` for the first of `columns` that is missing; `key` is the config key that asks for it."""
        for column in columns:
            if column not in self.rows.column_names:
                raise UserError(
                    f"The data have no column '{column}'.",
                    where=f"{self.source}, which has the columns {', '.join(self.rows.column_names)}",
                    nearest=nearest_names(column, self.rows.column_names),
                    remedy=f"name the right column: {key}=...",
                )


def table_of(rows: Any, source: str) -> Table:
    """A table of all rows of a `datasets.Dataset`; an empty one is refused."""
    if len(rows) == 0:
        raise UserError("A split has no rows.", where=source, remedy="give it rows, or leave the file out")
    return Table(rows, source, np.arange(1, len(rows) + 1))


def read_folder(path: str, splits: Sequence[str], quoting: str = "standard") -> dict[str, Table]:
    """The splits found in a folder of files named by split (`train.parquet`, `dev.tsv`, `test-00000-of-00002.csv`).

    Args:
        path: the folder; files may also stand in its sub-folder `data`.
        splits: wanted names, such as `train`, `validation`, `validation_matched`; missing ones are left out.
        quoting: `standard`, or `none` for files (GLUE's own .tsv) in which a quotation mark means itself.
    """
    folder = existing(path)
    files = [f for d in (folder, folder / "data") if d.is_dir() for f in sorted(d.iterdir()) if f.suffix in FORMATS]
    found = {name: [f for f in files if _is_split(f.stem, name, splits)] for name in splits}
    if not any(found.values()):
        raise UserError(
            f"The folder holds no file named after a split ({', '.join(splits)}).",
            where=str(folder),
            nearest=sorted(f.name for f in folder.iterdir())[:3],
            remedy=f"name the files train, validation and test, with one of the endings {', '.join(FORMATS)}",
        )
    return {name: read_files(shards, quoting) for name, shards in found.items() if shards}


def path_of(dataset: Mapping[str, Any]) -> str:
    """`dataset.path` of a data set that is nothing without one; its config says what it may be (`about.needs_path`).

    Raises:
        UserError: it is not set.
    """
    if not dataset.get("path"):
        needs = (dataset.get("about") or {}).get("needs_path") or "PATH"
        raise UserError("The dataset has no path.", where=f"dataset={dataset['name']}", remedy=f"dataset.path={needs}")
    return str(dataset["path"])


def existing(path: str) -> Path:
    """`path` if it is there, else a `UserError` with the nearest names beside it."""
    found = Path(path).expanduser()
    if not found.exists():
        beside = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
        raise UserError(
            "There is no such file or folder.",
            where=f"dataset.path={path}",
            nearest=[str(found.parent / name) for name in nearest_names(found.name, beside)],
            remedy="set dataset.path to the data's file or folder",
        )
    return found


def _is_split(stem: str, name: str, splits: Sequence[str]) -> bool:
    """Does a file's stem stand for split `name`? The longest split name that fits decides."""

    def fits(split: str) -> bool:
        names = _ALIASES.get(split, (split,))
        return any(stem == n or stem.startswith((f"{n}-", f"{n}_", f"{n}.")) for n in names)

    fitting = [split for split in splits if fits(split)]
    return name == max(fitting, key=len, default=None)


def read_files(files: Sequence[Path], quoting: str = "standard") -> Table:
    """One table of one or more files (shards) of the same format."""
    from datasets import Dataset, concatenate_datasets

    tables = [(f, _read_file(f, quoting)) for f in files]
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    rows: Dataset = tables[0][1] if len(tables) == 1 else concatenate_datasets([t for _, t in tables])
    return table_of(rows, source)


def _read_file(file: Path, quoting: str) -> Any:
    import datasets
    from datasets import Dataset

    none = {"quoting": csv.QUOTE_NONE} if quoting == "none" else {}
    # Texts such as "NA" or "null" are words: nothing is taken for a missing value.
    table = {"na_filter": False, "keep_default_na": False} | none
    readers: dict[str, Callable[[], Any]] = {
        ".parquet": lambda: Dataset.from_parquet(str(file)),
        ".csv": lambda: Dataset.from_csv(str(file), **table),
        ".tsv": lambda: Dataset.from_csv(str(file), sep="\t", **table),
        ".json": lambda: Dataset.from_json(str(file)),
        ".jsonl": lambda: Dataset.from_json(str(file)),
        ".txt": lambda: Dataset.from_text(str(file)),
    }
    if file.suffix not in readers:
        raise UserError(
            f"Files that end in '{file.suffix}' cannot be read.",
            where=str(existing(str(file))),
            remedy=f"use one of {', '.join(FORMATS)}",
        )
    if existing(str(file)).stat().st_size == 0:
        raise UserError("The file is empty.", where=str(file), remedy="give it rows, or leave the file out")
    if file.suffix in (".csv", ".tsv"):
        _check_fields(file, "\t" if file.suffix == ".tsv" else ",", none)
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        return readers[file.suffix]()
    except Exception as error:
        if file.suffix in (".json", ".jsonl"):
            _check_json(file)
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"The file cannot be read: {reason}", where=str(file), remedy="repair the file") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        datasets.enable_progress_bars()


def _check_fields(file: Path, delimiter: str, dialect: dict[str, Any]) -> None:
    """Every row has as many fields as the header; the reader would fill short rows up in silence."""
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines, delimiter=delimiter, **dialect)
        row = 0
        try:
            header = next(reader)
            for row, fields in enumerate(reader, 1):
                if fields and len(fields) != len(header):
                    column = header[min(len(fields), len(header)) - 1]
                    raise UserError(
                        f"A row has {len(fields)} fields, the header {len(header)}.",
                        where=f"{file}, row {row} (ends at line {reader.line_num}), column '{column}'",
                        remedy="repair the row; dataset.quoting=none takes quotation marks as they stand",
                    )
            if row == 0:
                raise UserError(
                    "The file holds a header, but no rows.",
                    where=str(file),
                    remedy="give it rows, or leave the file out",
                )
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"A row cannot be read: {error}",
                where=f"{file}, row {row + 1} (after line {reader.line_num}), column '{header[0] if row else '?'}'",
                remedy="save the file as UTF-8 with the delimiter that its ending promises",
            ) from error


def _check_json(file: Path) -> None:
    """Name the first line that is no JSON object, if the file has one object a line."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("["):
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                raise ValueError("not an object of columns")
        except ValueError as error:
            raise UserError(
                f"A row cannot be read: {error}",
                where=f"{file}, row {number}, column ?",
                remedy='write one object a line: {"column": value, ...}',
            ) from error


def read_hub(name: str, config: str | None, revision: str | None, splits: Sequence[str]) -> dict[str, Table]:
    """The splits of a hub data set, downloaded once and kept in the library's own cache."""
    from datasets import load_dataset

    try:
        with _no_waiting(name, revision):
            loaded = load_dataset(name, config, revision=revision)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The data set '{name}'{f' ({config})' if config else ''} cannot be had from the hub: {reason}",
            where="dataset.hub",
            remedy="connect to the network once (it is then kept), or set dataset.path to a local folder with the same "
            "columns in files named train, validation, test (.parquet, .csv, .tsv, .json, .jsonl)",
        ) from error
    label = f"{name}{f' {config}' if config else ''} on the hub"
    return {s: table_of(loaded[s], f"{label}, split {s}") for s in splits if s in loaded}


@contextmanager
def _no_waiting(name: str, revision: str | None) -> Iterator[None]:
    """Ask the hub once; if it does not answer, work offline: the cache or an error at once, not after five retries."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = constants.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(name, revision=revision, timeout=10)
    except Exception as error:  # an answer, however unfriendly, is for `load_dataset` to explain
        constants.HF_HUB_OFFLINE = before or not isinstance(error, HfHubHTTPError)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

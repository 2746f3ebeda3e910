"""Rows and columns from local files or the hub, read through `datasets`; every complaint names file, row and column."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from transfer_run.data.reading.pictures import is_leftover
from transfer_run.data.reading.text_tables import Dialect, dialect_of, kind_of, read_text_table, stem_of
from transfer_run.errors import UserError, nearest_names
from transfer_run.files import fixed_part

FORMATS = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt")
PLAIN = Dialect()
_ALIASES = {"validation": ("validation", "val", "valid", "dev")}


@dataclass(frozen=True)
class Table:
    """A split, or a part of one, that remembers where its rows came from.

    Attributes:
        rows: a `datasets.Dataset`.
        source: the file or hub data set that the rows stand in.
        numbers: row numbers in `source`, counted from 1 (a header is not counted).
        notes: what a user may not expect of how it was read.
    """

    rows: Any
    source: str
    numbers: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, indices: Sequence[int]) -> Table:
        return replace(self, rows=self.rows.select(indices), numbers=self.numbers[np.asarray(indices, dtype=int)])

    def locate(self, index: int, column: str) -> str:
        """Where a value stands, for an error's `where`."""
        return f"{self.source}, row {self.numbers[index]}, column '{column}'"

    def require(self, columns: Iterable[str], key: str) -> None:
        """Raise `UserError` for the first of `columns` that is missing; `key` is the config key that asks for it."""
        for column in columns:
            if column not in self.rows.column_names:
                raise UserError(
                    f"The data have no column '{column}'.",
                    where=f"{self.source}, which has the columns {_shown(self.rows.column_names)}",
                    nearest=nearest_names(column, self.rows.column_names),
                    remedy=f"name the right column: {key}=...",
                )


def _shown(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:60] for name in names[:most]) + more


def table_of(rows: Any, source: str, notes: Sequence[str] = ()) -> Table:
    """A table of all rows of a `datasets.Dataset`; an empty one is refused."""
    if len(rows) == 0:
        raise UserError("A split has no rows.", where=source, remedy="give it rows, or leave the file out")
    return Table(rows, source, np.arange(1, len(rows) + 1), tuple(notes))


def is_table(path: Path) -> bool:
    """Is this a table by its name, and no leftover of an archive?"""
    return kind_of(path) in FORMATS and not is_leftover(path.name)


def read_folder(path: str, splits: Sequence[str], dialect: Dialect = PLAIN) -> dict[str, Table]:
    """The splits found in a folder of files named by split (`train.parquet`, `Dev.tsv`, `test-00000-of-00002.csv.gz`).

    Args:
        path: the folder; files may also stand in its sub-folder `data`.
        splits: wanted names, such as `train`, `validation`, `validation_matched`; missing ones are left out.

    Raises:
        UserError: no such file, several that cannot be meant together, or a part that is missing.
    """
    folder = existing(path)
    inside = (folder, folder / "data")
    files = [f for d in inside if d.is_dir() for f in sorted(d.iterdir()) if f.is_file() and is_table(f)]
    found = {name: [f for f in files if _is_split(stem_of(f), name, splits)] for name in splits}
    if not any(found.values()):
        raise UserError(
            f"The folder holds no file named after a split ({', '.join(splits)}).",
            where=str(folder),
            nearest=sorted(f.name for f in folder.iterdir())[:3],
            remedy=f"name the files train, validation and test, with one of the endings {', '.join(FORMATS)}",
        )
    for name, parts in found.items():
        _check_parts(name, parts)
    read = {name: read_files(parts, dialect) for name, parts in found.items() if parts}
    others = [f.name for f in files if not any(f in parts for parts in found.values())]
    if others:
        first = next(iter(read))
        read[first] = replace(read[first], notes=(*read[first].notes, f"{_shown(others)}: no split, left out"))
    return read


def split_tables(dataset: Mapping[str, Any], splits: Sequence[str], path: str = "") -> tuple[dict[str, Table], Path]:
    """The tables that `dataset.path` holds, or that it fits as a pattern, by split (one file alone is the first of
    `splits`), and the folder that relative names in them start from.

    Args:
        path: what is read in the place of `dataset.path`.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    path, dialect = path or path_of(dataset), dialect_of(dataset)
    if is_pattern(path):
        return read_pattern(path, splits, dialect), fixed_part(path)
    found = existing(path)
    if found.is_file():
        return {splits[0]: read_files([found], dialect)}, found.parent
    return read_folder(path, splits, dialect), found


def is_pattern(path: str) -> bool:
    """Is this a pattern of files (`shards/*.csv`), and no file that is called so?"""
    return glob.has_magic(path) and not Path(path).expanduser().exists()


def fitting(pattern: str) -> list[Path]:
    """The files that a pattern fits, by path, without leftovers of archives."""
    root, found = fixed_part(pattern), sorted(map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True)))
    return [
        file for file in found if file.is_file() and not any(is_leftover(part) for part in file.relative_to(root).parts)
    ]


def read_pattern(path: str, splits: Sequence[str], dialect: Dialect = PLAIN) -> dict[str, Table]:
    """The tables that a pattern fits, in the order of their paths: those named after splits (`*/train-7.csv`) as these,
    all of them as train where none is.

    Raises:
        UserError: it fits none.
    """
    files = [file for file in fitting(path) if is_table(file)]
    if not files:
        raise UserError(
            "The pattern fits no table.",
            where=f"dataset.path={path}",
            remedy=f"files end in {', '.join(FORMATS)}; ** goes through folders",
        )
    found = {name: [file for file in files if _is_split(stem_of(file), name, splits)] for name in splits}
    if not any(found.values()):
        found = {splits[0]: files}
    read = {name: read_files(parts, dialect) for name, parts in found.items() if parts}
    others = [file.name for file in files if not any(file in parts for parts in found.values())]
    for name, table in read.items():
        parts = found[name]
        said = [f"{name}: {len(parts)} files, {parts[0].name} to {parts[-1].name}"] if len(parts) > 1 else []
        read[name] = replace(table, notes=(*table.notes, *said))
    if others:
        first = next(iter(read))
        read[first] = replace(read[first], notes=(*read[first].notes, f"{_shown(others)}: no split, left out"))
    return read


def _check_parts(name: str, files: Sequence[Path]) -> None:
    """Several files of a split are its numbered parts, of one kind, all of them there."""
    if len(files) < 2 and not any(_PARTS.search(stem_of(file)) for file in files):
        return
    named = {(_NUMBERED.sub("", stem_of(file)), file.parent, kind_of(file)) for file in files}
    if len(named) > 1:
        raise UserError(
            f"The split '{name}' stands in several files that are not numbered parts of one.",
            where=f"{files[0].parent}: {_shown([f.name for f in files])}",
            remedy="leave the right one, or number parts of one kind: train-00000-of-00002.csv",
        )
    for file in files:
        if (counted := _PARTS.search(stem_of(file))) and len(files) != int(counted[1]):
            raise UserError(
                f"{file.name} is one of {int(counted[1])} parts, of which {len(files)} are there.",
                where=str(file.parent),
                remedy="add the missing parts, or rename the file",
            )


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


_NUMBERED = re.compile(r"[-_.]?(?:part|shard)?[-_.]?\d+(?:[-_.]of[-_.]\d+)?$", re.IGNORECASE)
_PARTS = re.compile(r"[-_.]of[-_.](\d+)$", re.IGNORECASE)


def _is_split(stem: str, name: str, splits: Sequence[str]) -> bool:
    """Does a file's stem, in any case, stand for split `name` or a numbered part of it?"""
    stem = stem.lower()
    plain = (
        stem if any(stem == n for split in splits for n in _ALIASES.get(split, (split,))) else _NUMBERED.sub("", stem)
    )
    return plain in _ALIASES.get(name, (name,))


def read_files(files: Sequence[Path], dialect: Dialect = PLAIN) -> Table:
    """One table of one or more files (parts) of the same format."""
    from datasets import Dataset, concatenate_datasets

    for file in files:
        if kind_of(file) not in FORMATS:
            raise UserError(
                f"Files that end in '{file.suffix}' cannot be read.",
                where=str(existing(str(file))),
                remedy=f"use one of {', '.join(FORMATS)}, or one of them compressed (.gz, .bz2, .xz, .zip)",
            )
        if existing(str(file)).stat().st_size == 0:
            raise UserError("The file is empty.", where=str(file), remedy="give it rows, or leave the file out")
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if kind_of(files[0]) != ".parquet":
        rows, notes = read_text_table(files, dialect)
        return table_of(Dataset(rows, fingerprint=token_hex(8)), source, notes)
    tables = [_parquet(file) for file in files]
    try:
        whole = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    except ValueError as error:
        what = f"Parts of a split have other columns or types: {str(error).splitlines()[0]}"
        raise UserError(what, where=source, remedy="give all parts the same columns") from error
    return table_of(whole, source)


def _parquet(file: Path) -> Any:
    import datasets
    from datasets import Dataset

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        return Dataset.from_parquet(str(file))
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"The file cannot be read: {reason}", where=str(file), remedy="repair the file") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        datasets.enable_progress_bars()


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

"""Tables written as text: .csv, .tsv, .json, .jsonl and .txt, plain or compressed, as columns of just what they say.

What stands in a .csv or .tsv stays text, `0002` and `1.10` and `2001-03-01` too: who asks a column for numbers makes
them. Values in JSON keep their own types. Every row has as many fields as the header; nothing is filled up or cut.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from transfer_run.data.reading.pictures import is_leftover
from transfer_run.errors import UserError


def _unzipped(file: Path, mode: str, *, encoding: str | None = None, newline: str | None = None) -> IO[Any]:
    """The one file in a .zip.

    Raises:
        UserError: there are several, or none.
    """
    archive = zipfile.ZipFile(file)
    held = [name for name in archive.namelist() if not any(is_leftover(part) for part in Path(name).parts)]
    held = [name for name in held if not name.endswith("/")]
    if len(held) != 1:
        raise UserError(
            f"The archive holds {len(held)} files, a compressed table is one.",
            where=str(file),
            remedy="unpack it, and name the folder",
        )
    raw = archive.open(held[0])
    return raw if mode == "rb" else io.TextIOWrapper(raw, encoding=encoding, newline=newline)


COMPRESSED: dict[str, Callable[..., IO[Any]]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": _unzipped,
}
DELIMITERS = {".csv": ",", ".tsv": "\t"}
CHUNK = 50_000
"""Rows that are held as Python's own texts at once."""
LONGEST = 2**31 - 1
"""Characters of one field."""


@dataclass(frozen=True)
class Dialect:
    """How a table is written.

    Attributes:
        delimiter: between fields; None: a comma in .csv, a tab in .tsv.
        quotes: fields may stand in quotation marks; False: these mean themselves (`dataset.quoting=none`).
    """

    delimiter: str | None = None
    quotes: bool = True


def dialect_of(dataset: Mapping[str, Any]) -> Dialect:
    """What `dataset.delimiter` and `dataset.quoting` say.

    Raises:
        UserError: a delimiter of other than one character.
    """
    delimiter = dataset.get("delimiter")
    delimiter = {"tab": "\t", "\\t": "\t", "space": " "}.get(str(delimiter), delimiter)
    if delimiter is not None and len(delimiter) != 1:
        raise UserError(
            f"A delimiter is one character, not {delimiter!r}.",
            where="dataset.delimiter",
            nearest=["tab", ";", ","],
            remedy="dataset.delimiter=';'",
        )
    return Dialect(delimiter, dataset.get("quoting") != "none")


def kind_of(file: Path) -> str:
    """The ending that says how a file is read, in small letters: `.csv` of `TRAIN.CSV` and of `train.csv.gz`."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix in COMPRESSED else suffix


def stem_of(file: Path) -> str:
    """A file's name without its endings."""
    return Path(file.stem).stem if file.suffix.lower() in COMPRESSED else file.stem


@contextmanager
def opened(file: Path) -> Iterator[IO[str]]:
    """A file's text, decompressed, in UTF-8 or as its first bytes say.

    Raises:
        UserError: it is damaged, or compressed otherwise than its name says.
    """
    opener = COMPRESSED.get(file.suffix.lower(), open)
    try:
        with opener(file, "rb") as raw:
            begin = raw.read(2)
        encoding = "utf-16" if begin in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with opener(file, "rt", newline="", encoding=encoding) as stream:
            yield stream
    except (gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"The file cannot be unpacked: {error}", where=str(file), remedy="compress it again") from error


def read_text_table(files: Sequence[Path], dialect: Dialect) -> tuple[pa.Table, list[str]]:
    """The rows of files of one kind, one after another, and what a user may not expect of them.

    Raises:
        UserError: a row that cannot be read as it stands; with its file and number.
    """
    kind = kind_of(files[0])
    if kind in DELIMITERS:
        read = [_delimited(file, dialect.delimiter or DELIMITERS[kind], dialect) for file in files]
        for file, (table, _) in zip(files[1:], read[1:], strict=True):
            if table.column_names != read[0][0].column_names:
                raise UserError(
                    f"Parts of a split have other columns: {', '.join(table.column_names)}.",
                    where=f"{file}, beside {files[0].name} with {', '.join(read[0][0].column_names)}",
                    remedy="give all parts the same columns in the same order",
                )
        return pa.concat_tables([table for table, _ in read]), [note for _, notes in read for note in notes]
    if kind == ".txt":
        return pa.table({"text": pa.array([line for file in files for line in _lines(file)], pa.string())}), []
    places, rows = [], []
    for file in files:
        for number, row in enumerate(_objects(file), 1):
            places.append((file, number))
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column(name, [row.get(name) for row in rows], places) for name in names}), []


def headerless(file: Path, names: Sequence[str]) -> pa.Table:
    """The rows of a .csv whose first line is a row.

    Args:
        names: of its columns, all of them.
    """
    return _delimited(file, ",", Dialect(), list(names))[0]


# ---- .csv, .tsv
def _delimited(
    file: Path, delimiter: str, dialect: Dialect, names: list[str] | None = None
) -> tuple[pa.Table, list[str]]:
    csv.field_size_limit(LONGEST)
    rules: dict[str, Any] = {"strict": True} if dialect.quotes else {"quoting": csv.QUOTE_NONE}
    chunks: list[pa.Table] = []
    rows: list[list[str]] = []
    number = broken = 0
    header = names or []
    with opened(file) as lines:
        reader = csv.reader(lines, delimiter=delimiter, **rules)
        try:
            header = names or _header(file, next(reader, []), dialect)
            for fields in reader:
                if not fields:
                    continue
                number += 1
                _check_fields(file, number, fields, header, reader.line_num, delimiter)
                broken += any("\n" in field for field in fields)
                rows.append(fields)
                if len(rows) == CHUNK:
                    chunks.append(_texts(header, rows))
                    rows = []
        except (UnicodeDecodeError, csv.Error) as error:
            column = header[0] if header else "?"
            raise UserError(
                f"A row cannot be read: {error}",
                where=f"{file}, row {number + 1} (after line {reader.line_num}), column '{column}'",
                remedy="save the file as UTF-8"
                if isinstance(error, UnicodeDecodeError)
                else "repair the row; dataset.quoting=none takes quotation marks as they stand",
            ) from error
    if number == 0:
        raise UserError(
            "The file holds a header, but no rows.", where=str(file), remedy="give it rows, or leave the file out"
        )
    notes = [f"{file.name}: {broken} of {number} rows hold line breaks within quotation marks"] if broken else []
    return pa.concat_tables([*chunks, _texts(header, rows)]), notes


def _header(file: Path, fields: list[str], dialect: Dialect) -> list[str]:
    """The columns' names; those without one are called by their place."""
    if not fields:
        raise UserError("The file does not begin with a header.", where=str(file), remedy="name its columns in line 1")
    other = next((mark for mark in (";", "\t", "|", ",") if mark in fields[0]), "") if len(fields) == 1 else ""
    if other and dialect.delimiter is None:
        shown = "tab" if other == "\t" else f"'{other}'"
        raise UserError(
            f"The header is one column, {fields[0][:60]!r}.", where=str(file), remedy=f"dataset.delimiter={shown}"
        )
    names = [name or f"column {place}" for place, name in enumerate(fields, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"There are two columns '{twice}'.", where=str(file), remedy="give each a name of its own")
    return names


def _check_fields(file: Path, row: int, fields: list[str], header: list[str], line: int, delimiter: str) -> None:
    """As many fields as the header has; a field of a .tsv that swallowed whole lines is no field."""
    if len(fields) != len(header):
        column = header[min(len(fields), len(header)) - 1]
        what = f"A row has {len(fields)} fields, the header {len(header)}."
    elif delimiter == "\t" and any("\n" in field and "\t" in field for field in fields):
        column = next(name for name, field in zip(header, fields, strict=True) if "\n" in field and "\t" in field)
        what = "A quotation mark joins several lines into one field."
    else:
        return
    raise UserError(
        what,
        where=f"{file}, row {row} (ends at line {line}), column '{column}'",
        remedy="repair the row; dataset.quoting=none takes quotation marks as they stand",
    )


def _texts(header: list[str], rows: list[list[str]]) -> pa.Table:
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(header)})


# ---- .txt, .json, .jsonl
def _lines(file: Path) -> Iterator[str]:
    number = 0
    with opened(file) as stream:
        try:
            for line in stream:
                number += 1
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"A row cannot be read: {error}",
                where=f"{file}, row {number + 1}, column 'text'",
                remedy="save the file as UTF-8",
            ) from error


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """One object a line, or a list of objects."""
    with opened(file) as stream:
        try:
            begin = stream.read(4096)
        except UnicodeDecodeError:
            begin = ""
    if begin.lstrip().startswith("["):
        with opened(file) as stream:
            try:
                rows = json.load(stream)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"The file cannot be read: {error}", where=str(file), remedy="repair the file"
                ) from error
        for number, row in enumerate(rows, 1):
            yield _object(file, number, row)
        return
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _no_object(file, number, str(error)) from error
            yield _object(file, number, row)


def _object(file: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise _no_object(file, number, "not an object of columns")
    return row


def _no_object(file: Path, number: int, why: str) -> UserError:
    return UserError(
        f"A row cannot be read: {why}",
        where=f"{file}, row {number}, column ?",
        remedy='write one object a line: {"column": value, ...}',
    )


def _column(name: str, values: list[Any], places: list[tuple[Path, int]]) -> pa.Array:
    """Values of one type; of several plain types as text, as JSON writes them.

    Raises:
        UserError: plain values beside lists or objects.
    """
    kinds = {type(value) for value in values if value is not None}
    plain = kinds <= {str, int, float, bool}
    if kinds <= {str}:
        return pa.array(values, pa.string())
    if plain and not (kinds <= {int, float} or kinds <= {bool}):
        return _as_text(values)
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        if plain:
            return _as_text(values)
        odd = next((i for i, v in enumerate(values) if v is not None and type(v) is not type(values[0])), 0)
        file, number = places[odd]
        raise UserError(
            f"The column holds values of several kinds: {str(error).splitlines()[0]}",
            where=f"{file}, row {number}, column '{name}'",
            remedy="give all rows the same kind of value",
        ) from error


def _as_text(values: list[Any]) -> pa.Array:
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())

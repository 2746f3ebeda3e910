"""The files that the tables of a data set name in a column, without reading them: part of what the data are.

A data set's file says which column that is:

    about:
      elsewhere: {column: image_column, folder: image_folder, ending: .png}

    column    the key that names the column (null: the column `image`, or those that hold images in a .parquet)
    folder    the key that names the folder where relative paths start; left out, or null: where the tables are
    ending    that names may leave out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transfer_run.data.reading.archive import is_archive, unpacked
from transfer_run.data.reading.table import fitting, is_pattern, is_table
from transfer_run.data.reading.text_tables import Dialect, dialect_of, kind_of, read_text_table
from transfer_run.errors import UserError
from transfer_run.files import fixed_part


def named_files(dataset: Mapping[str, Any], path: Path) -> list[tuple[str, Path]] | None:
    """What the tables at `path` (one, or a folder of them) name, each once, with the file or folder that it names.

    None where a table cannot be read: whoever reads the data says why.
    """
    elsewhere = dataset["about"]["elsewhere"]
    names: dict[str, None] = {}
    try:
        tables, folder = _tables(unpacked(path) if is_archive(path) else path)
        root = Path(dataset.get(elsewhere.get("folder") or "") or folder).expanduser()
        for table in tables:
            for name in _named_in(table, dataset.get(elsewhere["column"]), dialect_of(dataset)):
                names[name] = None
    except (UserError, OSError, ValueError):
        return None
    return [(name, _found(root / Path(name).expanduser(), elsewhere.get("ending") or "")) for name in names]


def _tables(path: Path) -> tuple[list[Path], Path]:
    """The tables that a path or a pattern names, and the folder that relative names in them start from."""
    if is_pattern(str(path)):
        return [file for file in fitting(str(path)) if is_table(file)], fixed_part(str(path))
    if not path.is_dir():
        return [path], path.parent
    folders = [folder for folder in (path, path / "data") if folder.is_dir()]
    return sorted(file for folder in folders for file in folder.iterdir() if file.is_file() and is_table(file)), path


def _found(file: Path, ending: str) -> Path:
    return file if not ending or file.name.endswith(ending) else file.with_name(file.name + ending)


def _named_in(file: Path, column: str | None, dialect: Dialect) -> Iterator[str]:
    """The values of a column that are names; what is stored as bytes names nothing."""
    if kind_of(file) == ".parquet":
        columns = _columns_of_parquet(file, column)
    else:
        rows, _ = read_text_table([file], dialect)
        wanted = column or "image"
        columns = [rows[wanted]] if wanted in rows.column_names else []
    for values in columns:
        for chunk in values.iterchunks():
            for value in chunk.to_pylist():
                if isinstance(value, Mapping):  # an image: its bytes, or a path
                    value = value.get("path") if value.get("bytes") is None else None
                if isinstance(value, str | int) and value != "":
                    yield str(value)


def _columns_of_parquet(file: Path, column: str | None) -> list[Any]:
    from pyarrow import parquet, types

    schema = parquet.read_schema(file)
    images = [f.name for f in schema if types.is_struct(f.type) and {"path", "bytes"} <= {p.name for p in f.type}]
    wanted = [column] if column is not None else images or ["image"]
    wanted = [name for name in wanted if name in schema.names]
    table = parquet.read_table(file, columns=wanted)
    return [table[name] for name in wanted]

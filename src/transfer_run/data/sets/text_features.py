"""Your own questions about images whose features are stored: tables of text beside one safetensors file an image.

    train.csv                      question, answer, features       the columns' names are keys of the config
    features/000042.safetensors    features (V, D_v)                floating point: what an image encoder made
                                   boxes    (V, 4), optional        x1, x2, y1, y2 of each token, in 0..1
                                   image    (V,), optional          0 or 1: which of two images (NLVR2) a token is of

The column names the file (`features/000042.safetensors` or `features/000042`), starting from the table's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_run.data.reading.archive import place_of
from transfer_run.data.reading.labels import check_texts
from transfer_run.data.reading.table import Table, path_of, split_tables
from transfer_run.data.rows.splits import SPLITS, completed
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.visual_text import Visual, VisualText
from transfer_run.errors import UserError

ENDING = ".safetensors"
IMAGES = 2
"""Images that a row may have: what the visual embedding of LST numbers (NLVR2 has two)."""


class TextFeatures(VisualText):
    """`dataset.path` is a table (.csv, .tsv, .json, .jsonl, .parquet) or a folder with tables named train, validation
    and test; `dataset.text_columns`, `label_column` (the answers) and `feature_column` name its columns.

    A split that is missing is taken from train, whole images with all their questions (`dataset.split_shares`).
    All features' headers are read before anything else is done; their values when a row is.
    """

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.files: dict[str, list[Path]] = {}

    def read_rows(self) -> dict[str, TextRows]:
        path = path_of(self.dataset)
        tables, folder = split_tables(self.dataset, SPLITS, place_of(path, self.notes))
        self.notes += [note for table in tables.values() for note in table.notes]
        for table in tables.values():
            self._check_columns(table)
        tables = _whole_images(tables, self.dataset["feature_column"], self.dataset["split_shares"], path)
        known: set[Path] = set()
        for name, table in tables.items():
            self.files[name] = self._files(table, folder, known)
        columns, label = list(self.dataset["text_columns"]), self.dataset["label_column"]
        return {
            name: TextRows(
                table.rows.select_columns(columns),
                [None if answer is None else str(answer) for answer in table.rows[label]],
            )
            for name, table in tables.items()
        }

    def _check_columns(self, table: Table) -> None:
        check_texts(table, list(self.dataset["text_columns"]))
        table.require([self.dataset["label_column"]], "dataset.label_column")
        column = self.dataset["feature_column"]
        table.require([column], "dataset.feature_column")
        empty = next((i for i, value in enumerate(table.rows[column]) if value in (None, "")), None)
        if empty is not None:
            raise UserError(
                "A row names no features.", where=table.locate(empty, column), remedy="fill it in, or take the row out"
            )

    def _files(self, table: Table, folder: Path, known: set[Path]) -> list[Path]:
        """The features' file of every row; each file's header is looked at once (`known`)."""
        column, files = self.dataset["feature_column"], []
        for row, value in enumerate(table.rows[column]):
            name = str(value) if str(value).endswith(ENDING) else f"{value}{ENDING}"
            file = folder / Path(name).expanduser()
            if file not in known:
                self._check_header(file, table.locate(row, column))
                known.add(file)
            files.append(file)
        return files

    def _check_header(self, file: Path, where: str) -> None:
        """Raises UserError for a file that is missing, is no safetensors file, or holds tensors of other shapes."""
        from safetensors import SafetensorError, safe_open

        if not file.is_file():
            raise UserError(
                f"There is no file of features {file}.",
                where=where,
                remedy="repair the name; it starts from the table's folder",
            )
        try:
            with safe_open(file, framework="pt") as stored:
                parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
                shapes = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"The features cannot be read: {error}.", where=str(file), remedy="store them as safetensors"
            ) from error
        self._check_shapes(shapes, str(file))

    def _check_shapes(self, shapes: Mapping[str, tuple[tuple[int, ...], str]], where: str) -> None:
        tokens, width = self.dataset["feature_tokens"], self.dataset["feature_width"]
        shape, kind = shapes.get("features", ((), ""))
        if len(shape) != 2 or not shape[0] or "F" not in kind:
            held = ", ".join(f"{name} {list(size)} {dtype}" for name, (size, dtype) in shapes.items()) or "nothing"
            raise UserError(
                f"The file holds {held}; not `features` of shape [tokens, width] in floating point.",
                where=where,
                remedy=f"store features [up to {tokens}, {width}]",
            )
        if shape[1] != width:
            raise UserError(
                f"The features are {shape[1]} wide, not dataset.feature_width={width}.",
                where=where,
                remedy=f"dataset.feature_width={shape[1]} method.extra_width={shape[1]}, or other features",
            )
        if shape[0] > tokens:
            raise UserError(
                f"The file holds {shape[0]} visual tokens, more than dataset.feature_tokens={tokens}.",
                where=where,
                remedy=f"dataset.feature_tokens={shape[0]}",
            )
        for name, wanted in (("boxes", (shape[0], 4)), ("image", (shape[0],))):
            if name in shapes and shapes[name][0] != wanted:
                raise UserError(
                    f"`{name}` has shape {list(shapes[name][0])}, not {list(wanted)}.",
                    where=where,
                    remedy=f"store one row of `{name}` a token, or leave it out",
                )

    def visual(self, split: str, row: int) -> Visual:
        """Raises UserError for boxes outside 0..1 and images other than 0 and 1."""
        from safetensors.torch import load_file

        file = self.files[split][row]
        stored = load_file(file)
        boxes, images = stored.get("boxes"), stored.get("image")
        if boxes is not None and not bool(((boxes >= 0) & (boxes <= 1)).all()):
            raise UserError(
                "A box lies outside the image.", where=str(file), remedy="store x1, x2, y1, y2 as shares in 0..1"
            )
        if images is not None and not bool(((images >= 0) & (images < IMAGES)).all()):
            raise UserError(
                f"The images of a row are numbered 0 to {IMAGES - 1}; the file has others.",
                where=str(file),
                remedy=f"number them from 0, at most {IMAGES} a row",
            )
        return Visual(stored["features"], boxes, images)


def _whole_images(tables: Mapping[str, Table], column: str, shares: Mapping[str, float], path: str) -> dict[str, Table]:
    """Train, validation and test; a missing one is a part of train's images, all rows of an image together."""
    numbers = {name: _numbered(table.rows[column]) for name, table in tables.items()}
    images = {name: np.zeros(int(of.max()) + 1) for name, of in numbers.items()}
    parts = completed(images, shares, path)
    return {
        name: tables[source].select(np.flatnonzero(np.isin(numbers[source], chosen)).tolist())
        for name, (source, chosen) in parts.items()
    }


def _numbered(values: Sequence[Any]) -> np.ndarray:
    """The number of each row's image (n,), counted in the order in which the images come."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(str(value), len(first)) for value in values])

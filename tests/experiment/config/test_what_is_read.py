"""A run's identity is what it reads: where another byte of a file makes other rows or an error, it is another run."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfer_run.data.load import build_data
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

TEXT = ("method=linear_probe", "backbone=bert_tiny", "backbone.weights=random:0")
IMAGE = ("method=linear_probe", "backbone=cnn_tiny", "backbone.weights=random:0", "dataset=image_folder")


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file)


def table(file: Path, header: list[str], rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",").writerows([header, *rows])


def one_table(folder: Path) -> tuple[str, ...]:
    table(folder / "rows.csv", ["text", "label"], [[f"text {n}", "ab"[n % 2]] for n in range(20)])
    return (*TEXT, "dataset=text_files", f"dataset.path={folder / 'rows.csv'}")


def splits(folder: Path) -> tuple[str, ...]:
    for split in ("train", "validation", "test"):
        table(folder / f"{split}.tsv", ["text", "label"], [[f"{split} {n}", "ab"[n % 2]] for n in range(6)])
    return (*TEXT, "dataset=text_files", f"dataset.path={folder}")


def shards(folder: Path) -> tuple[str, ...]:
    for number in range(2):
        rows = [f'{{"text": "text {number} {n}", "label": "{"ab"[n % 2]}"}}' for n in range(12)]
        (folder / f"train-0000{number}-of-00002.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return (*TEXT, "dataset=text_files", f"dataset.path={folder}")


def pictures(folder: Path) -> tuple[str, ...]:
    for number in range(12):
        below = "deep/er" if number % 3 == 0 else "."
        picture(folder / "ab"[number % 2] / below / f"{number}.png", number)
    return (*IMAGE, f"dataset.path={folder}")


def linked(folder: Path) -> tuple[str, ...]:
    pictures(folder / "far")
    (folder / "near").mkdir()
    for label in "ab":
        (folder / "near" / label).symlink_to(folder / "far" / label)
    return (*IMAGE, f"dataset.path={folder / 'near'}")


def named_pictures(folder: Path) -> tuple[str, ...]:
    for number in range(12):
        picture(folder / "elsewhere" / f"{number}.png", number)
    rows = [[f"../elsewhere/{n}.png", "ab"[n % 2]] for n in range(12)]
    table(folder / "data" / "train.csv", ["image", "label"], rows)
    return (*IMAGE, f"dataset.path={folder / 'data'}")


READERS = (one_table, splits, shards, pictures, linked, named_pictures)


def rows_of(words: tuple[str, ...]) -> str:
    """A digest of all that the data set hands out, or of what it says instead."""
    config: Any = compose(list(words)).config
    data = build_data(config["dataset"], config["backbone"], 0)
    found = hashlib.sha256()
    try:
        data.setup()
        for split in sorted(data.sizes):
            for row in range(data.sizes[split]):
                example = data.example(split, Draw(row))
                found.update(repr({key: np.asarray(value).tolist() for key, value in example.items()}).encode())
    except UserError as error:
        return str(error)
    return found.hexdigest()


@pytest.mark.parametrize("reader", READERS)
def test_another_byte_that_is_read_is_another_run(reader: Callable[[Path], tuple[str, ...]], tmp_path: Path) -> None:
    words = reader(tmp_path)
    before, rows = compose(list(words)).identity, rows_of(words)
    assert len(rows) == 64, f"the data as they are must be read: {rows}"
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file() and not file.is_symlink()]
    heard = 0
    for file in files:
        content = file.read_bytes()
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if rows_of(words) != rows:
            heard += 1
            assert compose(list(words)).identity != before, f"{file.relative_to(tmp_path)} is read and in no identity"
        file.write_bytes(content)
        assert compose(list(words)).identity == before
    assert heard == len(files)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_read_changes_nothing(reader: Callable[[Path], tuple[str, ...]], tmp_path: Path) -> None:
    words = reader(made(tmp_path / "data"))
    before = compose(list(words)).identity
    (tmp_path / "beside.csv").write_text("text,label\n", encoding="utf-8")
    for folder in [tmp_path / "data", *(path for path in (tmp_path / "data").rglob("*") if path.is_dir())]:
        (folder / ".hidden").write_text("x", encoding="utf-8")
    assert compose(list(words)).identity == before


@pytest.mark.parametrize("reader", READERS)
def test_where_the_data_lie_changes_nothing(reader: Callable[[Path], tuple[str, ...]], tmp_path: Path) -> None:
    before = compose(list(reader(made(tmp_path / "one")))).identity
    shutil.rmtree(tmp_path / "one")
    assert compose(list(reader(made(tmp_path / "two")))).identity == before

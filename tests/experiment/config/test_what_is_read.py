"""A run's identity is what it reads: where another byte of a file makes other rows or an error, it is another run."""

from __future__ import annotations

import csv
import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.tokenizer import build_tokenizer
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


def fitting_tables(folder: Path) -> tuple[str, ...]:
    for number in range(2):
        rows = [[f"text {number} {n}", "ab"[n % 2]] for n in range(12)]
        table(folder / f"part{number}" / "rows.csv", ["text", "label"], rows)
    return (*TEXT, "dataset=text_files", f"dataset.path={folder / '*' / '*.csv'}")


def fitting_pictures(folder: Path) -> tuple[str, ...]:
    for number in range(12):
        picture(folder / "all" / "train" / "ab"[number % 2] / f"{number}.png", number)
    return (*IMAGE, f"dataset.path={folder / 'all' / '**' / '*.png'}")


def archived(folder: Path) -> tuple[str, ...]:
    """All bytes of an archive are its own: another one of them is another run, or an error that is told."""
    for number in range(12):
        picture(folder.parent / "loose" / "ab"[number % 2] / f"{number}.png", number)
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for file in sorted((folder.parent / "loose").rglob("*.png")):
            info = zipfile.ZipInfo(str(file.relative_to(folder.parent / "loose")))
            archive.writestr(info, file.read_bytes())
    shutil.rmtree(folder.parent / "loose")
    return (*IMAGE, f"dataset.path={folder / 'pictures.zip'}")


def captions(folder: Path) -> tuple[str, ...]:
    for number in range(12):
        picture(folder / "elsewhere" / f"{number}.png", number)
    rows = [[f"../elsewhere/{n}.png", f"caption {n}"] for n in range(12)]
    table(folder / "data" / "train.csv", ["image", "caption"], rows)
    words = ("method=full", "backbone=clip_tiny", "backbone.weights=random:0", "backbone.tower=both")
    return (*words, "dataset=image_captions", f"dataset.path={folder / 'data'}")


READERS = (
    one_table, splits, shards, pictures, linked, named_pictures, fitting_tables, fitting_pictures, archived, captions,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


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
        place = content.find(b"IDAT") + 5 if file.suffix == ".zip" else len(content) // 2
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


def test_a_patterns_pictures_of_another_class_or_split_are_another_run(tmp_path: Path) -> None:
    """What says it may stand before the first wildcard."""
    found = set()
    for above in ("train/a", "train/b", "test/a"):
        picture(tmp_path / above / "0.png", 0)
        found.add(compose([*IMAGE, f"dataset.path={tmp_path / above / '*.png'}"]).identity)
    assert len(found) == 3


# ---- weights
def whole(folder: Path) -> tuple[str, ...]:
    """A transformers folder with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=12, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return ("method=full", "backbone=bert_tiny", f"backbone.weights={folder}", "backbone.architecture=folder",
            "backbone.tokenizer=null", "dataset=python_docs")  # fmt: skip


def in_shards(folder: Path) -> tuple[str, ...]:
    """The same in several files with an index."""
    words = whole(folder)
    BertModel.from_pretrained(folder).save_pretrained(folder / "shards", max_shard_size="2KB")
    (folder / "model.safetensors").unlink()
    for file in (folder / "shards").glob("model*"):
        file.rename(folder / file.name)
    shutil.rmtree(folder / "shards")
    return words


def weights_of(words: tuple[str, ...]) -> str:
    """What a run would start from, and how it would read a text; or what is said instead."""
    try:
        config: Any = compose(list(words)).config
        backbone = build_backbone(config["backbone"])
        ids = build_tokenizer(config["backbone"])("a bad cafe fed").input_ids
    except UserError as error:
        return str(error)
    return f"{backbone.provenance['checksum']} {ids}"


@pytest.mark.parametrize("reader", [whole, in_shards])
def test_another_byte_of_weights_or_tokenizer_is_another_run(
    reader: Callable[[Path], tuple[str, ...]], tmp_path: Path
) -> None:
    words = reader(tmp_path)
    before, read, heard = compose(list(words)).identity, weights_of(words), set()
    for file in sorted(path for path in tmp_path.iterdir() if path.is_file()):
        content = file.read_bytes()
        for place in (len(content) // 3, len(content) // 2, len(content) - 9):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if weights_of(words) != read:
                heard.add(file.suffix)
                assert _identity(words) != before, f"{file.name} is read and in no identity"
        file.write_bytes(content)
    assert heard >= {".safetensors", ".json", ".txt"}
    assert compose(list(words)).identity == before


def _identity(words: tuple[str, ...]) -> str:
    try:
        return compose(list(words)).identity
    except UserError as error:
        return str(error)

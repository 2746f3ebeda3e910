"""Odd tables, picture folders and weight folders: each is read rightly or refused in one message, never otherwise.

What is right is told by somebody else's reader: Python's `csv` and `json`, PIL, safetensors.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file

from tests.faults.conftest import WHOLE
from transfer_run.backbones.load import build_backbone
from transfer_run.data.images.image_data import decoded
from transfer_run.data.load import build_data
from transfer_run.data.reading.pictures import in_8_bits
from transfer_run.data.reading.text_tables import Dialect, read_text_table
from transfer_run.errors import UserError

TABLES, EXAMPLES, PICTURES, MODELS = (900, 500, 400, 300) if WHOLE else (100, 50, 40, 15)
SEEDS = st.integers(0, 2**32 - 1)
Recorder = Callable[[str, Any], None]


def tried(count: int) -> Any:
    """Settings of a test of `count` odd inputs, the same ones every time."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


# ---- tables
FIELDS = ["", "a", "0002", "1.10", "TRUE", "null", "NaN", "None", " x ", "é", "日本", 'say "so"', "a,b", "a;b", "x\ty",
          "l1\nl2", "2001-03-01", "1e5", "-0", "'", "#", "\\", "\ufeff", "N/A", "１２", "a" * 3000]  # fmt: skip


def odd_table(dice: random.Random) -> tuple[str, str, str]:
    """The text of a table, its file's ending, and its encoding."""
    header = dice.sample(["text", "label", "id", "x y", "Text", "2", "é"], dice.randint(1, 4))
    rows = [[dice.choice(FIELDS) for _ in header] for _ in range(dice.randint(0, 6))]
    if dice.random() < 0.15 and rows:
        row = dice.choice(rows)
        row.append("more") if dice.random() < 0.5 else row.pop()
    if dice.random() < 0.05:
        header[-1] = header[0]
    ending, text = dice.choice([".csv", ".tsv"]), io.StringIO()
    quoting = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(text, delimiter="\t" if ending == ".tsv" else ",", quoting=quoting,
                        lineterminator=dice.choice(["\n", "\r\n"]))  # fmt: skip
    writer.writerows([header, *rows])
    content = text.getvalue()
    if dice.random() < 0.1:
        content = content[: dice.randint(0, len(content))]
    if dice.random() < 0.1:
        content = content.replace("\n", "\n\n", 1)
    if dice.random() < 0.05:
        content += '"'
    return content, ending, dice.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])


def test_a_table_is_what_pythons_own_reader_reads(record_property: Recorder) -> None:
    """Every value as it stands, every row; a row of other than the header's fields is refused."""

    @tried(TABLES)
    @given(SEEDS)
    def one(seed: int) -> None:
        content, ending, encoding = odd_table(random.Random(seed))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"train{ending}"
            file.write_bytes(content.encode(encoding, errors="replace"))
            try:
                table, _ = read_text_table([file], Dialect())
            except UserError:
                return
            with file.open(encoding="utf-8-sig" if encoding.startswith("utf-8") else encoding, newline="") as text:
                lines = [
                    row for row in csv.reader(text, delimiter="\t" if ending == ".tsv" else ",", strict=True) if row
                ]
        assert table.column_names == [name.strip() for name in lines[0]] or table.column_names == lines[0]
        assert all(len(row) == len(lines[0]) for row in lines), "a row of other length was read"
        read = [["" if value is None else value for value in row.values()] for row in table.to_pylist()]
        assert read == lines[1:]

    one()
    record_property("cases", TABLES)


LABELS = [["0", "1"], ["1", "2", "3"], ["good", "bad"], ["yes", "no", ""], ["Yes", "yes"], ["0", "1", "0001"],
          ["1.0", "2.0"], ["-1", "0", "1"], ["a", "b ", " b"], ["NaN", "x"], ["true", "false"], ["é", "e\u0301"],
          ["1", "one"], ["3", "40000"], FIELDS]  # fmt: skip


def odd_examples(dice: random.Random, folder: Path) -> list[dict[str, Any]] | None:
    """Write a table of texts and labels as train, validation and test; the rows that somebody else reads in it, None
    where that one refuses it."""
    header = ["text", "label", *dice.sample(["id", "x y", "Text", "2", "é"], dice.randint(0, 2))]
    dice.shuffle(header)
    if dice.random() < 0.04:
        header.remove(dice.choice(["text", "label"]))
    pool = dice.choice(LABELS)
    rows = [[dice.choice(pool if name == "label" else FIELDS) for name in header] for _ in range(dice.randint(0, 9))]
    ending, encoding = dice.choice([".csv", ".csv", ".tsv", ".json", ".jsonl"]), "utf-8"
    if ending.startswith(".json"):
        examples: list[dict[str, Any]] = [dict(zip(header, row, strict=True)) for row in rows]
        for example in examples:
            if dice.random() < 0.3 and example.get("label", "").isascii() and example.get("label", "").isdigit():
                example["label"] = int(example["label"])
            if dice.random() < 0.05:
                example["text"] = dice.choice([None, 3, 2.5, True, ["a"], {"a": 1}])
        content = json.dumps(examples) if ending == ".json" else "".join(f"{json.dumps(row)}\n" for row in examples)
    else:
        delimiter = "\t" if ending == ".tsv" else ","
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=dice.choice(["\n", "\r\n"])).writerows([header, *rows])
        content, encoding = text.getvalue(), dice.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
        content = content[: dice.randint(0, len(content))] if dice.random() < 0.06 else content
    for split in ("train", "validation", "test"):
        (folder / f"{split}{ending}").write_bytes(content.encode(encoding, errors="replace"))
    if ending.startswith(".json"):
        return examples
    decoding = "utf-8-sig" if encoding.startswith("utf-8") else encoding
    try:
        with (folder / f"train{ending}").open(encoding=decoding, newline="") as file:
            lines = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
        return [dict(zip(lines[0], row, strict=True)) for row in lines[1:]]
    except (csv.Error, ValueError, IndexError):
        return None


def same_number(one: Any, other: Any) -> bool:
    """Are these the same number, however it is written?"""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return False


def test_labelled_texts_are_read_as_they_stand(record_property: Recorder) -> None:
    """From the words of a command to the rows: every text, every label, or one message; what is meant otherwise than
    it is written is said."""

    @tried(EXAMPLES)
    @given(SEEDS)
    def one(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            examples = odd_examples(random.Random(seed), Path(folder))
            words = ("dataset=text_files", "backbone=bert_tiny", "dataset.text_columns=[text]")
            try:
                data: Any = build_data(*composed(*words, f"dataset.path={folder}"), 0)
                data.setup()
            except UserError:
                return
        assert examples is not None, "a damaged table was read"
        rows = data.encoders["train"].rows
        assert len(rows) == len(examples)
        notes = " ".join(data.notes)
        for example, row, label in zip(examples, rows.rows, rows.labels, strict=True):
            text = example["text"]
            assert row["text"] == text or str(row["text"]) == (text if isinstance(text, str) else json.dumps(text))
            written = str(example.get("label", "")) if example.get("label") is not None else ""
            if label < 0:
                assert not written.strip() or ("-1 is taken for no label" in notes and same_number(written, -1))
                continue
            name = data.label_names[label]
            assert written == name or same_number(written, name), (written, name)
            alike = {str(e["label"]).strip() for e in examples if same_number(e.get("label"), name)}
            assert len(alike) < 2 or f"are one label, the number {float(name):g}" in notes

    one()
    record_property("cases", EXAMPLES)


# ---- pictures
MODES = ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA", "I;16", "F", "I"]


def odd_picture(dice: random.Random, folder: Path, name: str) -> None:
    """A picture of any mode, size and format; some are cut off, some are turned, some are none."""
    numbers = np.random.default_rng(dice.getrandbits(32))
    mode, size = dice.choice(MODES), (dice.choice([1, 2, 7, 16]), dice.choice([1, 3, 8]))
    ending = dice.choice([".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp", ".PNG"])
    if mode in ("I;16", "I"):
        image = Image.fromarray(numbers.integers(0, 65536, size, dtype=np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(numbers.random(size, dtype=np.float32) * dice.choice([1, 1, 9]))
    else:
        image = Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    exif = Image.Exif()
    if dice.random() < 0.3:
        exif[0x0112] = dice.randint(1, 8)
    file = folder / f"{name}{ending}"
    try:
        image.save(file, exif=exif)
    except (OSError, ValueError, KeyError):  # a format that has no such mode
        image.convert("RGB").save(file)
    content = file.read_bytes()
    fate = dice.random()
    if fate < 0.06:
        file.write_bytes(content[: dice.randint(0, len(content) - 1)])
    elif fate < 0.09:
        file.write_bytes(bytes(dice.getrandbits(8) for _ in range(40)))


def right_picture(file: Path) -> np.ndarray:
    """Its pixels in colours, the right way up, as PIL has them."""
    with Image.open(file) as image:
        turned = ImageOps.exif_transpose(image)
    values = np.asarray(turned, dtype=np.float64)
    if turned.mode.startswith("I") or turned.mode == "F":
        top = 1.0 if turned.mode == "F" else 65535.0
        turned = Image.fromarray(np.rint(values * 255 / top).astype(np.uint8))
    return np.asarray(turned.convert("RGB"))


def test_a_folder_of_pictures_is_what_pil_reads(record_property: Recorder) -> None:
    @tried(PICTURES)
    @given(SEEDS)
    def one(seed: int) -> None:
        dice = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            for split in ("train", "validation", "test"):
                for label in ("a", "b"):
                    (Path(folder) / split / label).mkdir(parents=True)
                    for number in range(2):
                        odd_picture(dice, Path(folder) / split / label, str(number))
            try:
                words = ("dataset=image_folder", "backbone=cnn_tiny", f"dataset.path={folder}")
                data: Any = build_data(*composed(*words), 0)
                data.setup()
                read = {(split, row): decoded(in_colours, data.images[split], row)
                        for split in data.sizes for row in range(data.sizes[split])}  # fmt: skip
            except UserError:
                return
            files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
            assert len(files) == sum(data.sizes.values()), "a picture was left out without a word"
            for split in data.sizes:
                for row in range(data.sizes[split]):
                    file = Path(data.images[split].locate(row).partition(", row")[0])
                    np.testing.assert_array_equal(read[split, row], right_picture(file))

    one()
    record_property("cases", PICTURES)


def in_colours(image: Image.Image) -> np.ndarray:
    return np.asarray(in_8_bits(image).convert("RGB"))


def composed(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nodes of a data set and a backbone."""
    from transfer_run.experiment.config.compose import compose

    config: Any = compose(["method=full", "backbone.weights=random:0", *words]).config
    return dict(config["dataset"]), dict(config["backbone"])


# ---- weights
def odd_model(dice: random.Random, folder: Path, whole: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """A model's folder with one thing odd about it."""
    tensors, name = {key: tensor.clone() for key, tensor in whole.items()}, dice.choice(sorted(whole))
    what = dice.choice(["nothing", "missing", "shape", "nan", "inf", "type", "more", "prefix", "cut", "config", 
                        "shards", "no config", "empty", "index", "lost shard"])  # fmt: skip
    if what == "missing":
        del tensors[name]
    elif what == "shape":
        tensors[name] = torch.cat([tensors[name], tensors[name]])
    elif what in ("nan", "inf"):
        tensors[name].view(-1)[0] = float(what)
    elif what == "type":
        tensors[name] = tensors[name].to(dice.choice([torch.float16, torch.bfloat16, torch.float64, torch.int8]))
    elif what == "more":
        tensors["something.else"] = torch.ones(2)
    elif what == "prefix":
        tensors = {f"{dice.choice(['bert.', 'module.', 'model.'])}{key}": tensor for key, tensor in tensors.items()}
    settings = dict(config)
    if what == "config":
        settings[dice.choice(["hidden_size", "num_hidden_layers", "vocab_size", "model_type"])] = dice.choice(
            [1, "x", None]
        )
    if what != "no config":
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    file = folder / "model.safetensors"
    if what in ("shards", "index", "lost shard"):
        parts = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(sorted(tensors))}
        for part in set(parts.values()) if what != "lost shard" else ["model-0.safetensors"]:
            save_file({key: tensors[key] for key in tensors if parts[key] == part}, folder / part, {"format": "pt"})
        index = json.dumps({"metadata": {}, "weight_map": parts} if dice.random() < 0.7 else {"weight_map": parts})
        (folder / f"{file.name}.index.json").write_text(index if what != "index" else index[:-5], encoding="utf-8")
    elif what != "empty":
        save_file(tensors, file, {"format": "pt"})
    if what == "cut":
        file.write_bytes(file.read_bytes()[: dice.randint(0, file.stat().st_size - 1)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Tensors, config.json and backbone node of a small BERT."""
    from transformers import BertConfig, BertModel

    node = composed("dataset=python_docs", "backbone=bert_tiny")[1]
    sizes = {key: value for key, value in node["architecture"].items() if key != "model_type"}
    sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    made, folder = BertModel(BertConfig(**sizes)), tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    node = {**node, "architecture": {"model_type": "bert", **sizes}, "tokenizer": "bytes"}
    return dict(made.state_dict()), json.loads((folder / "config.json").read_text()), node


def test_a_folder_of_weights_is_what_safetensors_reads(
    model: tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]], record_property: Recorder
) -> None:
    """Every tensor of the model has the folder's value, or the folder is refused."""
    whole, config, node = model

    @tried(MODELS)
    @given(SEEDS)
    def one(seed: int) -> None:
        dice = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            odd_model(dice, Path(folder), whole, config)
            try:
                built = build_backbone({**node, "weights": folder})
            except UserError:
                return
            stored: dict[str, torch.Tensor] = {}
            for file in Path(folder).glob("*.safetensors"):
                with safe_open(file, framework="pt") as opened:
                    stored |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        names = {
            key.removeprefix("bert.").removeprefix("module.").removeprefix("model."): t for key, t in stored.items()
        }
        for key, tensor in built.model.state_dict().items():
            if key.startswith("pooler.") and key not in names:
                continue  # a checkpoint without a pooler is said in the log
            assert torch.equal(tensor, names[key].to(tensor.dtype)), f"{key} is not the folder's"

    one()
    record_property("cases", MODELS)

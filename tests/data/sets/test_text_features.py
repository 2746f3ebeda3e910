"""Text with stored visual features: batches, splits, and what is wrong with tables and features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.data.conftest import data_of, nodes
from tests.methods.side_tuning.models import backbone
from transfer_run.data.load import batch_spec, build_task
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.ladder.extra_tokens import ExtraTokens

TOKENS, WIDTH = 4, 6
WORDS = ("dataset=text_features", "backbone=t5_tiny", f"dataset.feature_tokens={TOKENS}",
         f"dataset.feature_width={WIDTH}")  # fmt: skip


def features(tokens: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def stored(folder: Path, name: str, **tensors: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images with two questions each; images differ in what is stored of them."""
    boxes = torch.tensor([[0.0, 0.5, 0.0, 1.0], [0.5, 1.0, 0.0, 1.0]])
    for image in range(20):
        more: dict[str, Any] = {"boxes": boxes, "image": torch.tensor([0, 1])} if image == 1 else {}
        stored(tmp_path / "images", f"i{image}", features=features(2 if image == 1 else TOKENS, image).half(), **more)
    rows = [f"{question} {i},answer {i},images/i{i}" for i in range(20) for question in ("what is it?", "how many?")]
    (tmp_path / "train.csv").write_text("\n".join(["question,answer,features", *rows]) + "\n", encoding="utf-8")
    return tmp_path


def test_batches_hold_text_answers_and_visual_tokens(folder: Path) -> None:
    data: Any = data_of(*WORDS, f"dataset.path={folder}")
    image = [int(str(file.stem)[1:]) for file in data.files["train"]]
    rows = [image.index(1), image.index(2)]
    batch = data.collate([data.split("train")[row] for row in rows])
    assert batch["extra_embeds"].dtype == torch.float32
    torch.testing.assert_close(batch["extra_embeds"][1], features(seed=2), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(batch["extra_embeds"][0, :2], features(2, 1), atol=2e-3, rtol=1e-3)
    assert batch["extra_embeds"][0, 2:].abs().max() == 0
    assert batch["extra_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["extra_images"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["extra_boxes"][0, :2].tolist() == [[0, 0.5, 0, 1], [0.5, 1, 0, 1]]
    assert batch["extra_boxes"][1].tolist() == [[0, 1, 0, 1]] * TOKENS
    texts = data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts == ["what is it? 1", "what is it? 2"]
    assert data.metrics("test").answers.texts(batch["labels"]) == ["answer 1", "answer 2"]


def test_the_batch_spec_is_the_largest_batch_and_needs_no_data(folder: Path) -> None:
    dataset, model = nodes(*WORDS)
    spec, task = batch_spec(dataset, model, 3), build_task(dataset, model)
    assert (task.form, task.metrics, task.max_target_length) == ("text_to_text", ("exact_match",), 20)
    batch = next(iter(data_of(*WORDS, f"dataset.path={folder}").loader("train", batch_size=3)))
    assert set(batch) == set(spec)
    for name, tensor in batch.items():
        shape, dtype = spec[name]
        assert tensor.dtype == dtype
        assert all(size <= most for size, most in zip(tensor.shape, shape, strict=True))
        assert not name.startswith("extra") or tensor.shape == shape


def test_the_visual_embedding_reads_the_batch(folder: Path) -> None:
    """The defaults of `ExtraTokens` and what a batch fills in for missing boxes and images are the same."""
    batch = next(iter(data_of(*WORDS, f"dataset.path={folder}").loader("validation", batch_size=2)))
    model = backbone("t5")
    embed = ExtraTokens(model, WIDTH)
    table = next(model.parameters())
    tokens, mask = embed(batch, table)
    bare, _ = embed({"extra_embeds": batch["extra_embeds"]}, table)
    assert tokens.shape == (2, TOKENS, 32)
    assert torch.equal(mask, batch["extra_mask"])
    assert torch.equal(tokens, bare)


def test_a_missing_split_takes_whole_images(folder: Path) -> None:
    data: Any = data_of(*WORDS, f"dataset.path={folder}")
    of = {name: set(files) for name, files in data.files.items()}
    assert {name: len(files) for name, files in of.items()} == {"train": 16, "validation": 2, "test": 2}
    assert data.sizes == {"train": 32, "validation": 4, "test": 4}
    assert not of["train"] & of["test"]
    alone: Any = data_of(*WORDS, f"dataset.path={folder / 'train.csv'}")
    assert alone.files == data.files


@pytest.mark.parametrize(
    ("tensors", "message", "remedy"),
    [
        ({}, "no file of features", "starts from the table's folder"),
        ({"vectors": features()}, r"holds vectors \[4, 6\] F32; not `features`", r"store features"),
        ({"features": torch.ones(4, 6, dtype=torch.int64)}, "in floating point", "store features"),
        ({"features": torch.zeros(0, 6)}, "not `features` of shape", "store features"),
        ({"features": torch.zeros(4, 5)}, "5 wide, not dataset.feature_width=6", "feature_width=5"),
        ({"features": features(7)}, "7 visual tokens", "dataset.feature_tokens=7"),
        ({"features": features(), "boxes": torch.zeros(3, 4)}, r"`boxes` has shape \[3, 4\], not \[4, 4\]", "leave it"),
        ({"features": features(), "image": torch.zeros(4, 1)}, r"`image` has shape", "one row"),
    ],
)
def test_wrong_features_are_named_when_the_data_are_read(
    folder: Path, tensors: dict[str, Tensor], message: str, remedy: str
) -> None:
    (folder / "images" / "i7.safetensors").unlink()
    if tensors:
        stored(folder / "images", "i7", **tensors)
    with pytest.raises(UserError, match=message) as caught:
        data_of(*WORDS, f"dataset.path={folder}")
    assert "i7" in str(caught.value)
    assert remedy in caught.value.remedy


def test_no_other_format_is_read(folder: Path) -> None:
    (folder / "images" / "i7.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UserError, match="cannot be read"):
        data_of(*WORDS, f"dataset.path={folder}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"boxes": torch.full((4, 4), 224.0)}, "lies outside the image"),
        ({"image": torch.arange(4)}, "numbered 0 to 1"),
    ],
)
def test_wrong_values_are_named_when_a_row_is_read(folder: Path, more: dict[str, Tensor], message: str) -> None:
    for image in range(20):
        stored(folder / "images", f"i{image}", features=features(), **more)
    data = data_of(*WORDS, f"dataset.path={folder}")
    with pytest.raises(UserError, match=message):
        data.split("train")[0]


@pytest.mark.parametrize(
    ("key", "header"),
    [
        ("text_columns", "text,answer,features"),
        ("label_column", "question,reply,features"),
        ("feature_column", "question,answer,image"),
    ],
)
def test_missing_columns(write: Callable[[str, str], Path], key: str, header: str) -> None:
    path = write("train.csv", f"{header}\na,b,c\n")
    with pytest.raises(UserError, match="have no column") as caught:
        data_of(*WORDS, f"dataset.path={path}")
    assert f"dataset.{key}" in caught.value.remedy


def test_a_row_without_features(write: Callable[[str, str], Path]) -> None:
    path = write("train.csv", "question,answer,features\na,b,\n")
    with pytest.raises(UserError, match="names no features") as caught:
        data_of(*WORDS, f"dataset.path={path}")
    assert "row 1, column 'features'" in caught.value.where


def test_digit_questions_are_not_answered_by_their_text() -> None:
    data = data_of("dataset=digit_questions", "backbone=t5_tiny")
    assert data.sizes == {"train": 2158, "validation": 718, "test": 718}
    batch = data.collate([data.split("train")[row] for row in range(4)])
    assert batch["extra_embeds"].shape == (4, 8, 8)
    assert torch.equal(batch["extra_embeds"][0], batch["extra_embeds"][1])
    assert (float(batch["extra_embeds"].min()), float(batch["extra_embeds"].max())) == (0.0, 1.0)
    assert batch["extra_boxes"][0, 3].tolist() == [0, 1, 3 / 8, 4 / 8]
    rows = data.encoders["test"].rows  # type: ignore[attr-defined]
    answers: dict[str, list[str]] = {}
    for row, answer in zip(rows.rows, rows.labels, strict=True):
        answers.setdefault(row["question"], []).append(answer)
    best = sum(max(map(given.count, given)) for given in answers.values()) / len(rows)
    assert 0.28 < best < 0.32

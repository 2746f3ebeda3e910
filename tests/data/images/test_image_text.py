"""Images with captions: rows and their images, the plan's shapes, splits of whole images, errors with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from tests.data.conftest import data_of, nodes
from transfer_run.data.load import batch_spec, build_data, build_task
from transfer_run.errors import UserError

CLIP = ("backbone=clip_tiny", "backbone.tower=both")


def pictures(folder: Path, count: int) -> list[str]:
    for number in range(count):
        Image.new("L", (9, 12), 10 * number).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def captioned(path: Path, *words: str) -> Any:
    node, backbone = nodes("dataset=image_captions", *CLIP, *words)
    data = build_data(node | {"path": str(path)}, backbone, 0)
    data.setup()
    return data


def refused(path: Path, *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        captioned(path, *words)
    return caught.value


def test_digit_captions_are_their_own_and_fit_the_plan() -> None:
    data = data_of("dataset=digit_captions", *CLIP)
    assert data.sizes == {"train": 1079, "validation": 359, "test": 359}
    captions = [caption for split in data.pairs.values() for caption in split.captions]  # type: ignore[attr-defined]
    assert len(set(captions)) == len(captions) == 1797
    assert max(map(len, captions)) < 32, "nothing is cut"
    batch = next(iter(data.loader("train", batch_size=6)))
    spec = batch_spec(*nodes("dataset=digit_captions", *CLIP), 6)
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == spec
    task = build_task(*nodes("dataset=digit_captions", *CLIP))
    assert (task.form, task.loss, task.headline) == ("retrieval", "infonce", "rsum")
    first = data.split("test")[0]
    text = bytes(token - data.tokenizer.offset for token in first["input_ids"][:-1]).decode()  # type: ignore[attr-defined]
    assert text == data.pairs["test"].captions[0]  # type: ignore[attr-defined]
    assert first["input_ids"][-1] == data.tokenizer.eos_token_id  # type: ignore[attr-defined]


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "bytes"])
def test_a_table_of_images_with_several_captions(ending: str, tmp_path: Path) -> None:
    names = pictures(tmp_path, 3)
    rows = {"image": [names[0], names[1], names[0], names[2]], "caption": ["a", "b", "c", "d"]}
    path = tmp_path / f"train.{'parquet' if ending == 'bytes' else ending}"
    if ending == "csv":
        Dataset.from_dict(rows).to_csv(path)
    elif ending == "json":
        path.write_text(json.dumps([{"image": names[0], "caption": ["a", "c"]}, {"image": names[1], "caption": ["b"]},
                                    {"image": names[2], "caption": ["d"]}]))  # fmt: skip
    elif ending == "parquet":
        Dataset.from_dict(rows).to_parquet(path)
    else:
        stored = {"image": [str(tmp_path / name) for name in names], "caption": [["a", "c"], ["b"], ["d"]]}
        Dataset.from_dict(stored).cast_column("image", ImageFeature()).to_parquet(path)
    shares = ("dataset.split_shares.validation=0.34", "dataset.split_shares.test=0.34")
    data = captioned(path, *shares)
    found = {
        caption: float(example["pixel_values"].mean())
        for name, split in data.pairs.items()
        for caption, example in zip(split.captions, data.split(name), strict=True)
    }
    assert found["a"] == found["c"] < found["b"] < found["d"]
    owners = {name: split.image_of.tolist() for name, split in data.pairs.items()}
    assert sorted(map(len, owners.values())) == [1, 1, 2], "an image's captions stay together"
    assert all(set(numbers) == {0} for numbers in owners.values())


def test_splits_in_files_and_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = pictures(tmp_path / "images", 3)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (tmp_path / f"{split}.csv").write_text(f"file,said\n{name},text of {split}\n")
    words = ("dataset.image_column=file", "dataset.caption_column=said", f"dataset.image_folder={tmp_path / 'images'}")
    data = captioned(tmp_path, *words)
    assert {name: split.captions for name, split in data.pairs.items()} == {
        "train": ["text of train"], "validation": ["text of val"], "test": ["text of test"],
    }  # fmt: skip


def test_long_captions_are_cut_and_short_ones_padded(tmp_path: Path) -> None:
    names = pictures(tmp_path, 1)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(f"image,caption\n{names[0]},ab\n{names[0]},{'x' * 100}\n")
    data = captioned(tmp_path, "dataset.max_source_length=10")
    batch = next(iter(data.loader("train", batch_size=2, shuffle=False)))
    assert batch["attention_mask"].sum(1).tolist() == [3, 10]
    assert batch["input_ids"][:, [2, 9]].tolist() == [[1, 0], [data.tokenizer.offset + ord("x"), 1]]
    assert batch["labels"].tolist() == [0, 0]
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


@pytest.mark.parametrize(
    ("table", "what", "place"),
    [
        ("picture,caption\n0.png,a\n", "no column 'image'", "train.csv"),
        ("image,text\n0.png,a\n", "no column 'caption'", "train.csv"),
        ("image,caption\n0.png,a\n9.png,b\n", "There is no image '9.png'", "train.csv, row 2, column 'image'"),
        ("image,caption\n,a\n", "names no image", "train.csv, row 1, column 'image'"),
        ("image,caption\n0.png,a\n1.png,\n", "caption is missing", "train.csv, row 2, column 'caption'"),
        ("image,caption\n", "no rows", "train.csv"),
        ("", "empty", "train.csv"),
        ("image,caption\n0.png,a\n", "'validation' has no rows", "dataset=image_captions"),
    ],
)
def test_wrong_tables_are_refused_with_their_place(table: str, what: str, place: str, tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    (tmp_path / "train.csv").write_text(table)
    error = refused(tmp_path / "train.csv")
    assert what in error.what
    assert place in error.where
    assert error.remedy


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("no picture")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text("image,caption\n0.png,a\n")
    data = captioned(tmp_path)
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        data.split("train")[0]
    assert caught.value.where.endswith("train.csv, row 1, column 'image'")


def test_without_a_path() -> None:
    with pytest.raises(UserError, match="has no path"):
        data_of("dataset=image_captions", *CLIP)


def test_a_tokenizer_that_is_not_there_is_said_when_the_data_are_read(tmp_path: Path) -> None:
    names = pictures(tmp_path, 1)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(f"image,caption\n{names[0]},ab\n")
    assert "no tokenizer" in refused(tmp_path, f"backbone.tokenizer={tmp_path}").what
    data = captioned(tmp_path)
    assert data.tokenizer is data.tokenizer


def test_what_is_said_of_the_tables_is_kept(tmp_path: Path) -> None:
    names = pictures(tmp_path, 4)
    for file in ("train.csv", "old.csv"):
        rows = "".join(f'{name},"two\nlines"\n' for name in names)
        (tmp_path / file).write_text(f"image,caption\n{rows}", encoding="utf-8")
    notes = captioned(tmp_path, "dataset.split_shares={validation: 0.5, test: 0}", "dataset.max_source_length=8").notes
    assert "train.csv: 4 of 4 rows hold line breaks within quotation marks" in notes
    assert "old.csv: no split, left out" in notes
    assert "train: 2 of 2 captions are cut at 8 tokens" in notes

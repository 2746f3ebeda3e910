"""Images: transform, the layouts of a folder, VTAB-1k's lists, pictures that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from tests.data.conftest import data_of, nodes, real
from transfer_run.data.images.transform import Transform
from transfer_run.data.load import batch_spec, build_data, build_task
from transfer_run.errors import UserError

GREY = {"size": 8, "mean": [0.25], "std": [0.5], "interpolation": "bilinear", "channels": 1}


def picture(path: Path, shade: int, size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def folder(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(root / name / f"{i:02}.png", 20 * number + i)
    return root


def images(path: Path, *overrides: str, dataset: str = "image_folder", backbone: str = "vit_tiny") -> Any:
    node, model = nodes(f"dataset={dataset}", f"backbone={backbone}", *overrides)
    data = build_data(node | {"path": str(path)}, model, 0)
    data.setup()
    return data


def test_transform_scales_resizes_and_normalises() -> None:
    made = Transform(GREY)(Image.new("RGB", (30, 20), (128, 128, 128)))
    assert made.shape == (1, 8, 8)
    assert torch.allclose(made, torch.tensor((128 / 255 - 0.25) / 0.5))
    colour = GREY | {"channels": 3, "mean": [0.1, 0.2, 0.3], "std": [1.0, 0.5, 0.25], "size": [4, 6]}
    made = Transform(colour)(Image.new("L", (8, 8), 255))
    assert made.shape == (3, 4, 6)
    assert made[:, 0, 0].tolist() == pytest.approx([0.9, 1.6, 2.8])
    corner = Image.new("L", (2, 1))
    corner.putpixel((1, 0), 255)
    made = Transform(GREY | {"size": [1, 2], "mean": [0.0], "std": [1.0]})(corner)
    assert made.tolist() == [[[0.0, 1.0]]], "rows are rows"


@pytest.mark.parametrize(("key", "value"), [("interpolation", "bilinar"), ("mean", [0.1, 0.2])])
def test_a_wrong_transform_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        Transform(GREY | {key: value})
    assert caught.value.where == f"backbone.image.{key}"


@pytest.mark.parametrize("backbone", ["vit_tiny", "cnn_tiny", "clip_tiny", "resnet18"])
def test_digits_fit_every_image_backbone(backbone: str) -> None:
    data = data_of("dataset=digits", f"backbone={backbone}")
    batch = next(iter(data.loader("validation", batch_size=6)))
    spec = batch_spec(*nodes("dataset=digits", f"backbone={backbone}"), 6)
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == spec
    assert set(torch.cat([b["labels"] for b in data.loader("train", batch_size=200)]).tolist()) == set(range(5))


def test_digits_follow_the_classes(digits: Any) -> None:
    other = data_of("dataset=digits", "backbone=vit_tiny", "dataset.classes=[0,1,2,3,4]")
    assert digits.label_names == ("5", "6", "7", "8", "9")
    assert other.label_names == ("0", "1", "2", "3", "4")
    assert sum(digits.sizes.values()) + sum(other.sizes.values()) == 1797
    parts = [np.stack([e["pixel_values"].numpy() for e in digits.split(n)]).reshape(-1, 64) for n in digits.sizes]
    rows = [{row.tobytes() for row in part} for part in parts]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    for wrong in ("[3]", "[3,3]", "[3,12]"):
        with pytest.raises(UserError, match="different digits"):
            build_task(*nodes("dataset=digits", "backbone=vit_tiny", f"dataset.classes={wrong}"))
    with pytest.raises(UserError, match=r"There are 5 classes, dataset\.num_labels is 3"):
        build_task(*nodes("dataset=digits", "backbone=vit_tiny", "dataset.num_labels=3"))


def test_a_folder_of_classes_is_split(tmp_path: Path) -> None:
    data = images(folder(tmp_path, {"cat": 20, "dog": 10}))
    assert data.sizes == {"train": 24, "validation": 3, "test": 3}
    assert data.task.label_names == ("cat", "dog")
    assert [sum(e["labels"] for e in data.split(name)) for name in data.sizes] == [8, 1, 1]


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 3), ("test", 4)):
        folder(tmp_path / split, {"a": count, "b": count})
    data = images(tmp_path)
    assert data.sizes == {"train": 20, "validation": 6, "test": 8}
    folder(tmp_path / "test", {"c": 1})
    with pytest.raises(UserError, match="class 'c' is not among") as caught:
        images(tmp_path)
    assert caught.value.where == str(tmp_path / "test" / "c")
    with pytest.raises(UserError, match="2 class folders"):
        images(tmp_path, "dataset.num_labels=5")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    folder(tmp_path / "d", {"cat": 6, "dog": 6})
    (tmp_path / "d" / "dog" / "03.png").write_bytes(b"no picture")
    data = images(tmp_path / "d", "dataset.split_shares.validation=0.2", "dataset.split_shares.test=0.2")
    loaders = [data.loader(name, batch_size=4, num_workers=1) for name in data.sizes]
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        [list(loader) for loader in loaders]
    assert str(tmp_path / "d" / "dog" / "03.png") in caught.value.where
    file = picture(tmp_path / "one.png", 9)
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": 0}] * 9
    rows[7] = {"image": {"bytes": file.read_bytes()[:50], "path": None}, "label": 1}
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    data = images(tmp_path / "train.parquet", "dataset.num_labels=2")
    with pytest.raises(UserError) as caught:
        [data.split(name)[:] for name in data.sizes]
    assert caught.value.where == f"{tmp_path / 'train.parquet'}, row 8, column 'image'"


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither class folders nor tables"):
        images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        images(tmp_path)
    rows = [{"picture": "x", "label": 0}]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="no column 'image'"):
        images(tmp_path / "train.parquet")


def test_real_tables_of_images() -> None:
    data = images(Path(real("images/cifar10-jpeg")), backbone="resnet18")
    assert data.sizes == {"train": 4500, "validation": 500, "test": 1000}
    assert data.label_names[3] == "cat"
    batch = next(iter(data.loader("train", batch_size=4)))
    assert batch["pixel_values"].shape == (4, 3, 224, 224)
    assert 0.5 < float(batch["pixel_values"].std()) < 2
    assert not data._decoded


def test_kept_images_are_decoded_once(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digits.split("test")[5]["pixel_values"]
    monkeypatch.setattr(digits.images["test"].__class__, "image", lambda self, row: pytest.fail("decoded again"))
    assert digits.split("test")[5]["pixel_values"] is first


# ---- VTAB-1k
def vtab_folder(root: Path) -> Path:
    """The usual form: pictures in one folder, lists of `path label`."""
    lists: dict[str, list[str]] = {"train800": [], "val200": [], "test": []}
    for i, name in enumerate([*["train800"] * 8, *["val200"] * 2, *["test"] * 5]):
        picture(root / "images" / f"{i:04}.png", 10 * i)
        lists[name].append(f"images/{i:04}.png {i % 4}")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(("protocol", "train"), [("train800val200", 10), ("train800", 8)])
@pytest.mark.parametrize("above", [False, True])
def test_vtab_lists(tmp_path: Path, protocol: str, train: int, above: bool) -> None:
    vtab_folder(tmp_path / "kitti")
    data = images(tmp_path if above else tmp_path / "kitti", f"dataset.protocol={protocol}", dataset="vtab/kitti")
    assert data.sizes == {"train": train, "validation": 2, "test": 5}
    assert data.split("test")[1]["labels"] == 11 % 4
    assert not data.notes


def test_a_wrong_line_of_a_list_is_named(tmp_path: Path) -> None:
    vtab_folder(tmp_path)
    file = tmp_path / "test.txt"
    file.write_text(file.read_text() + "images/0001.png 4\n")
    with pytest.raises(UserError, match="label from 0 to 3") as caught:
        images(tmp_path, dataset="vtab/kitti")
    assert caught.value.where == f"{file}, row 6, column 'label'"


def test_vtab_draws_a_thousand_rows_of_a_whole_data_set(tmp_path: Path) -> None:
    one = picture(tmp_path / "one.png", 7).read_bytes()
    rows = [{"image": {"bytes": one, "path": None}, "label": i % 4, "i": i} for i in range(1200)]
    Dataset.from_list(rows).to_parquet(tmp_path / "d" / "train.parquet")
    Dataset.from_list(rows[:30]).to_parquet(tmp_path / "d" / "test.parquet")
    search = images(tmp_path / "d", "dataset.protocol=train800", dataset="vtab/kitti")
    assert search.sizes == {"train": 800, "validation": 200, "test": 30}
    numbers = {name: set(search.images[name].table.numbers) for name in ("train", "validation")}
    assert not numbers["train"] & numbers["validation"]
    final = images(tmp_path / "d", dataset="vtab/kitti")
    assert set(final.images["train"].table.numbers) == numbers["train"] | numbers["validation"]
    assert "not the official ones" in final.notes[0]
    everything = images(tmp_path / "d", "dataset.protocol=all", dataset="vtab/kitti")
    assert everything.sizes == {"train": 1080, "validation": 120, "test": 30}
    Dataset.from_list(rows[:900]).to_parquet(tmp_path / "d" / "train.parquet")
    with pytest.raises(UserError, match="there are 900"):
        images(tmp_path / "d", dataset="vtab/kitti")

"""`dataset.classes` of a folder or a table of pictures: which rows, under which numbers and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tests.data.conftest import nodes
from transfer_run.data.load import build_data, data_class
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A grey of its own for every class: 0, 60, 120, 180; ten pictures each."""
    for number, name in enumerate(NAMES):
        for split, count in (("train", 10), ("test", 3)):
            below = tmp_path / split / name
            below.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 60 * number + i).save(below / f"{i}.png")
    return tmp_path


def read(path: Path, **keys: Any) -> Any:
    dataset, backbone = nodes("dataset=image_folder", "backbone=cnn_tiny")
    return build_data({**dataset, "path": str(path), **keys}, backbone, 0)


@pytest.mark.parametrize(
    ("classes", "names"),
    [(["dog", "bee"], ("dog", "bee")), ("1:3", ("bee", "cat")), ("3:4", ("dog",)), (["cat"], ("cat",))],
)
def test_rows_of_these_classes_under_new_numbers(folder: Path, classes: Any, names: tuple[str, ...]) -> None:
    data = read(folder, classes=classes)
    data.setup()
    assert data.label_names == names
    assert data.task.num_labels == len(names)
    assert f"{len(names)} of 4 classes are taken (dataset.classes)" in data.notes
    for split, count in (("train", 9), ("validation", 1), ("test", 3)):
        images = data.images[split]
        assert len(images.labels) == count * len(names)
        for row, label in enumerate(images.labels.tolist()):
            grey = int(np.asarray(images.image(row))[0, 0])
            assert grey // 60 == NAMES.index(names[label])


def test_parts_of_a_sequence_are_the_whole(folder: Path) -> None:
    """The classes of tasks that follow each other have the splits that the whole folder has."""
    whole = read(folder)
    parts = [read(folder, classes=classes) for classes in ("0:2", "2:4")]
    for data in (whole, *parts):
        data.setup()
    for split in ("train", "validation", "test"):
        rows = [str(path) for part in parts for path in part.images[split].paths]
        assert sorted(rows) == sorted(map(str, whole.images[split].paths))


def test_a_table_too(tmp_path: Path) -> None:
    for name in NAMES:
        Image.new("L", (4, 4), 60 * NAMES.index(name)).save(tmp_path / f"{name}.png")
    rows = [name for name in NAMES for _ in range(10)]
    table = Dataset.from_dict({"image": [f"{name}.png" for name in rows], "label": rows})
    table.to_csv(str(tmp_path / "train.csv"))
    data = read(tmp_path / "train.csv", classes=["dog", "ant"], image_column="image")
    data.setup()
    assert data.label_names == ("dog", "ant")
    images = data.images["train"]
    greys = [int(np.asarray(images.image(row))[0, 0]) for row in range(len(images.labels))]
    assert set(zip(greys, images.labels.tolist(), strict=True)) == {(180, 0), (0, 1)}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "dgo"], "no class 'dgo' among the 4"),
        (["dog", "dog"], "different names"),
        ([], "different names"),
        ("2:2", "different names"),
        ("3:1", "different names"),
        ("dog", "different names"),
        ("2:5", "The data have 4 classes"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, classes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(folder, classes=classes).setup()


def test_a_plan_knows_their_number_and_the_identity_tells_them(folder: Path) -> None:
    words = ["method=full", "backbone=cnn_tiny", "dataset=image_folder", f"dataset.path={folder}"]
    all_of_them, some = compose(words), compose([*words, "dataset.classes=[dog,bee]"])
    assert some.identity not in (all_of_them.identity, compose([*words, "dataset.classes=[bee,dog]"]).identity)
    first_three = compose([*words, "dataset.classes=0:3"]).config
    assert data_class(first_three["dataset"]).describe(first_three["dataset"], first_three["backbone"]).num_labels == 3
    with pytest.raises(UserError, match="several labels"):
        read(folder, classes="0:3", form="multi_label").setup()

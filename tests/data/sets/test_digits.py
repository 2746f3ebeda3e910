"""The embedded digits."""

from __future__ import annotations

from typing import Any

import pytest

from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose


def digits(*words: str) -> DataModule:
    config: Any = compose(["method=full", "backbone=vit_tiny", "dataset=digits", *words]).config
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return data


def test_the_names_of_the_classes_are_those_that_are_given() -> None:
    assert digits("dataset.classes=[3,8]").described.label_names == ("3", "8")
    assert digits("dataset.classes=[3,8]", "dataset.label_names=[three,eight]").described.label_names == (
        "three",
        "eight",
    )


@pytest.mark.parametrize("names", ["[three]", "[three,eight,nine]", "[three,three]"])
def test_as_many_names_as_classes(names: str) -> None:
    with pytest.raises(UserError, match="2 classes have as many names"):
        digits("dataset.classes=[3,8]", f"dataset.label_names={names}")


def test_a_class_may_be_a_group_of_digits() -> None:
    grouped, alone = digits("dataset.classes=[[3,8],[0]]"), digits("dataset.classes=[3,8,0]")
    assert grouped.described.label_names == ("3+8", "0")
    for split in ("train", "validation", "test"):
        assert grouped.labels(split).tolist() == [[0, 0, 1][label] for label in alone.labels(split)]
    tail = "dataset.long_tail.factor=8"
    rows = [data.subset["train"].tolist() for data in (digits("dataset.classes=[[3,8],[0]]", tail),
            digits("dataset.classes=[3,8,0]", tail))]  # fmt: skip
    assert rows[0] == rows[1], "a tail is one of digits"


@pytest.mark.parametrize("classes", ["[[3,8]]", "[[3,8],[3]]", "[[],[3]]", "[3]", "[3,10]", "[3,3]"])
def test_classes_that_are_none(classes: str) -> None:
    with pytest.raises(UserError, match="two or more different digits"):
        digits(f"dataset.classes={classes}")

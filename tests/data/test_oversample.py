"""Rows of small classes are read several times an epoch; no copy is tested on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.data.conftest import data_of
from transfer_run.data.oversample import check_oversample, counts_after, topped_up
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

DIGITS = ("dataset=digits", "backbone=vit_tiny", "dataset.classes=[0,1,2]", "dataset.long_tail.factor=10")
BALANCE = "dataset.oversample.to=balance"
FLIP = 'dataset.augment=["affine degrees=20"]'


def test_each_class_is_topped_up() -> None:
    assert counts_after([10, 3, 0], "balance") == [10, 10, 0]
    assert counts_after([10, 3, 4], [1, 2.5, 1]) == [10, 7, 4]
    labels = np.array([0, 1, 0, -100, 0, 0, 1])
    rows, readings = topped_up(labels, 3, "balance")
    assert rows[:7].tolist() == list(range(7))
    assert not readings[:7].any()
    assert sorted(rows[7:].tolist()) == [1, 6]
    assert readings[7:].tolist() == [1, 1]
    rows, readings = topped_up(labels, 2, [1, 3])
    assert [sorted(rows[readings == n].tolist()) for n in (1, 2)] == [[1, 6], [1, 6]]


def test_classes_train_alike_and_nothing_else_changes() -> None:
    plain, whole = data_of(*DIGITS), data_of(*DIGITS, BALANCE)
    largest = int(plain.class_counts.max())
    assert whole.class_counts.tolist() == [largest] * 3
    assert {key: whole.sizes[key] for key in ("validation", "test")} == {
        key: plain.sizes[key] for key in ("validation", "test")
    }
    assert len(list(whole.loader("train", batch_size=1))) == 3 * largest
    assert "rows are read as" in whole.notes[-1]
    assert set(whole.subset["train"]) == set(plain.subset["train"])


def test_weights_of_readings_are_all_one_and_of_rows_are_not() -> None:
    words = (*DIGITS, BALANCE, "dataset.class_weights=balanced")
    assert data_of(*words).task.class_weights == (1.0, 1.0, 1.0)
    original = data_of(*words, "dataset.oversample.weights=original").task.class_weights
    assert original == data_of(*DIGITS, "dataset.class_weights=balanced").task.class_weights
    assert len(set(original)) == 3


def test_groups_of_classes_are_told_by_rows() -> None:
    words = (*DIGITS, "dataset.long_tail.many=60", "dataset.long_tail.few=20")
    assert data_of(*words, BALANCE).task.class_groups == data_of(*words).task.class_groups


def test_every_reading_is_another_view() -> None:
    data = data_of(*DIGITS, BALANCE, FLIP)
    split, rows = data.split("train"), data.subset["train"]
    place = int(np.flatnonzero(data.readings["train"])[0])
    first = int(np.flatnonzero(rows == rows[place])[0])
    copy, own = (split.augmented(Draw(at))["pixel_values"] for at in (place, first))
    assert not torch.equal(copy, own)
    assert torch.equal(copy, split.augmented(Draw(place))["pixel_values"])
    assert torch.equal(split.draw(Draw(place))["pixel_values"], split.draw(Draw(first))["pixel_values"])
    part = data.part({"train": np.array([first, place])})
    assert torch.equal(part.split("train").augmented(Draw(1))["pixel_values"], copy)


def test_copies_alone_may_vary() -> None:
    data = data_of(*DIGITS, BALANCE, FLIP, "dataset.oversample.vary=copies")
    split, readings = data.split("train"), data.readings["train"]
    for at, varied in ((0, False), (int(np.flatnonzero(readings)[0]), True)):
        pair = (split.augmented(Draw(at))["pixel_values"], split.draw(Draw(at))["pixel_values"])
        assert torch.equal(*pair) != varied


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"to": "balanced", "vary": "all"}, "nearest|balance"),
        ({"to": [1, 0.5, 1], "vary": "all"}, "at least 1"),
        ({"to": [1, 2], "vary": "all"}, "2 factors for 3 classes"),
        ({"to": "balance", "vary": "copies"}, "nothing says how"),
    ],
)
def test_what_cannot_be_is_refused(node: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_oversample({"name": "digits", "form": "classification", "num_labels": 3, "oversample": node})


def test_a_form_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="has no classes"):
        compose(["dataset=glue/stsb", "backbone=bert_tiny", BALANCE])


def test_the_identity_is_another_and_stays_without() -> None:
    words = ["method=full", "dataset=digits", "backbone=vit_tiny"]
    plain, other = compose(words), compose([*words, BALANCE])
    assert plain.identity != other.identity
    assert compose([*words, "dataset.oversample.to=null"]).identity == plain.identity

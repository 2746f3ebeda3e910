"""A teacher reads the student's pixels with its own mean, deviation and size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.distillation.models import TASK, bert, images, vit
from transfer_run.errors import UserError
from transfer_run.methods.teacher import Reader, reader_of
from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task


def reader(normalize: bool = True, own_size: bool = False, **image: Any) -> Reader:
    student, teacher = Full(vit(1, layers=1), TASK), Full(vit(2, layers=1, **image), TASK)
    return reader_of(student, teacher, "t", normalize=normalize, own_size=own_size)


def test_pixels_are_normalised_anew() -> None:
    batch = images()
    raw = batch["pixel_values"] * 0.5 + 0.5  # the student's mean and deviation
    seen = reader(mean=[0.2], std=[0.1]).batch(batch)["pixel_values"]
    torch.testing.assert_close(seen, (raw - 0.2) / 0.1)
    assert reader(mean=[0.2], std=[0.1], normalize=False).batch(batch)["pixel_values"] is batch["pixel_values"]
    assert reader().batch(batch)["pixel_values"] is batch["pixel_values"], "equal moments change nothing"


def test_sizes() -> None:
    with pytest.raises(UserError, match="8 x 8 pixels") as error:
        reader(size=16)
    assert "method.data.size=per_model" in error.value.remedy
    assert reader(size=16, own_size=True).batch(images())["pixel_values"].shape == (6, 1, 16, 16)


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (lambda: Full(vit(2, channels=3), TASK), "images of 1 channels, the teacher of 3"),
        (lambda: Full(bert(1, layers=1), TASK), "read other inputs"),
        (lambda: Full(vit(2), Task("classification", 7)), "with 7 labels"),
        (lambda: Full(vit(2), Task("classification", 3, ("x", "y", "z"))), "would mean other classes"),
    ],
)
def test_strangers(teacher: Any, told: str) -> None:
    student = Full(vit(1), Task("classification", 3, ("a", "b", "c")))
    with pytest.raises(UserError, match=told) as error:
        reader_of(student, teacher(), "second", normalize=True, own_size=False)
    assert error.value.where == "sources.second"

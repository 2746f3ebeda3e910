"""Pictures in one .npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

DRAWN = np.random.default_rng(0)


def arrays(colours: bool = False, **more: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, rows in (("train", 12), ("val", 4), ("test", 5)):
        shape = (rows, 9, 7, 3) if colours else (rows, 9, 7)
        found[f"{name}_images"] = DRAWN.integers(0, 256, shape, dtype=np.uint8)
        found[f"{name}_labels"] = (np.arange(rows, dtype=np.uint8) % 3)[:, None]
    return {name: value for name, value in (found | more).items() if value is not None}


def read(file: Path, *words: str) -> DataModule:
    config: Any = compose(
        ["method=full", "backbone=vit_tiny", "dataset=npz_images", f"dataset.path={file}", *words]
    ).config
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return data


@pytest.mark.parametrize("colours", [False, True])
def test_splits_images_and_labels(tmp_path: Path, colours: bool) -> None:
    made = arrays(colours)
    np.savez(tmp_path / "a.npz", **made)
    data = read(tmp_path / "a.npz")
    assert data.sizes == {"train": 12, "validation": 4, "test": 5}
    assert data.described.num_labels == 3
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert data.labels(split).tolist() == made[f"{name}_labels"][:, 0].tolist()
    image: Any = data.images["test"].image(2)  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(image), made["test_images"][2])


def test_what_is_missing_is_taken_from_training_and_said(tmp_path: Path) -> None:
    made = arrays(val_images=None, val_labels=None, test_labels=None, weight=np.ones(3))
    np.savez(tmp_path / "a.npz", **made)
    data = read(tmp_path / "a.npz", "dataset.split_shares.validation=0.25")
    assert data.sizes == {"train": 9, "validation": 3, "test": 5}
    assert (data.labels("test") == -100).all()
    assert any("weight left out" in note for note in data.notes)
    assert any("test: there are no labels" in note for note in data.notes)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"train_images": np.zeros((12, 4, 4, 4), np.uint8)}, "shape"),
        ({"train_images": np.zeros((12, 4, 4))}, "float64"),
        ({"train_labels": np.zeros((12, 2), np.int64)}, "one class each"),
        ({"train_labels": np.full(12, -1)}, "no whole number from 0"),
        ({"train_labels": np.full(12, 0.5)}, "no whole number from 0"),
        ({"train_labels": None}, "no labels"),
        ({"train_images": None, "val_images": None, "test_images": None}, "no array of images"),
        ({"train_labels": np.array([{}] * 12)}, "holds Python objects, which are never read"),
    ],
)
def test_what_cannot_be_read_is_one_message(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**more))
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a.npz")


def test_damage_is_one_message(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    whole = (tmp_path / "a.npz").read_bytes()
    for name, damaged in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"no arrays")):
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"no \.npz file"):
            read(tmp_path / f"{name}.npz")

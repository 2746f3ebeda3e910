"""A distilled training set: its pixels as they are, the splits of the real one, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from transfer_run.data.base import DataModule
from transfer_run.data.images.synthetic import FILE, Synthetic
from transfer_run.data.load import build_data, build_task
from transfer_run.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"


def node(group: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(content.get(group, content))


def written(folder: Path, channels: int = 1, classes: tuple[str, ...] = ("3", "1")) -> Synthetic:
    pixels = torch.rand(6, channels, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 - 1
    made = Synthetic(pixels, torch.tensor([0, 0, 0, 1, 1, 1]), classes)
    made.write(folder / FILE)
    return made


def data(path: Path, **image: Any) -> DataModule:
    real = node("dataset", "digits") | {"classes": [3, 1]}
    dataset = node("dataset", "distilled") | {"path": str(path), "nodes": {"real": real}, "rows": None}
    backbone = node("backbone", "convnet_tiny")
    return build_data(dataset, backbone | {"image": backbone["image"] | image}, 0)


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    made = written(tmp_path)
    for path in (tmp_path, tmp_path / FILE):
        read = data(path, mean=[0.2], std=[0.5])
        train = read.split("train")
        assert [train[n]["labels"] for n in range(6)] == [0, 0, 0, 1, 1, 1]
        torch.testing.assert_close(torch.stack([train[n]["pixel_values"] for n in range(6)]), (made.images - 0.2) / 0.5)
    assert float(made.images.max()) > 1.5


def test_other_splits_are_the_real_ones(tmp_path: Path) -> None:
    written(tmp_path)
    read = data(tmp_path)
    real = build_data(
        node("dataset", "digits") | {"classes": [3, 1], "rows": None}, node("backbone", "convnet_tiny"), 0
    )
    assert read.sizes == real.sizes | {"train": 6}
    for split in ("validation", "test"):
        assert read.labels(split).tolist() == real.labels(split).tolist()
        assert torch.equal(read.split(split)[7]["pixel_values"], real.split(split)[7]["pixel_values"])
    assert read.task.num_labels == 2
    assert read.label_names == ("3", "1")
    assert read.class_counts.tolist() == [3, 3]
    batch = next(iter(read.loader("train", batch_size=6)))
    assert sorted(batch["labels"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_a_part_of_it_has_its_own_labels(tmp_path: Path) -> None:
    written(tmp_path)
    part = data(tmp_path).part({"train": torch.tensor([5, 0]).numpy()})
    assert part.labels("train").tolist() == [1, 0]


def test_another_size_and_grey_for_coloured_are_said(tmp_path: Path) -> None:
    made = written(tmp_path)
    read = data(tmp_path, size=16, channels=3, mean=[0.0], std=[1.0])
    seen = read.split("train")[2]["pixel_values"]
    assert list(seen.shape) == [3, 16, 16]
    assert torch.equal(seen[0], seen[2])
    assert float(seen.mean()) == pytest.approx(float(made.images[2].mean()), abs=0.05)
    assert any("resized to [16, 16]" in note for note in read.notes)
    assert any("read as coloured" in note for note in read.notes)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no synthetic set"):
        data(tmp_path).setup()
    written(tmp_path, classes=("3", "2"))
    with pytest.raises(UserError, match=r"classes 3, 2, dataset\.real of 3, 1"):
        data(tmp_path).setup()
    written(tmp_path, channels=3)
    with pytest.raises(UserError, match="3 channels, and the backbone reads 1"):
        data(tmp_path).setup()
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        data(tmp_path).setup()
    save_file({"images": torch.zeros(2, 3), "labels": torch.zeros(2)}, tmp_path / FILE, metadata={"classes": "[]"})
    with pytest.raises(UserError, match=r"holds images \[2, 3\]"):
        data(tmp_path).setup()
    with pytest.raises(UserError, match="Of which data set"):
        build_task(node("dataset", "distilled"), node("backbone", "convnet_tiny"))

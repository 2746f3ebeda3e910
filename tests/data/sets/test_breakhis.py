"""BreakHis is read by the names of its pictures; no patient, and no picture, is on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.data.sets.breakhis import GROUPS, SUBTYPES, parsed
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients of each subtype, three pictures of each at two magnifications, in the set's own folders."""
    place = tmp_path_factory.mktemp("breakhis")
    for code, name in SUBTYPES.items():
        group = "B" if code in ("A", "F", "PT", "TA") else "M"
        for patient in range(5):
            for magnification in (40, 200):
                below = place / "BreaKHis_v1" / GROUPS[group] / name / f"{magnification}X"
                below.mkdir(parents=True, exist_ok=True)
                for number in range(3):
                    file = f"SOB_{group}_{code}-14-{patient}{code}-{magnification}-{number:03}.png"
                    Image.new("RGB", (14, 9), (len(code) * 40, 9 * number, patient)).save(below / file)
    (place / "BreaKHis_v1" / "README.txt").write_text("not a picture")
    Image.new("RGB", (4, 4)).save(place / "BreaKHis_v1" / "cover.png")
    return place


def read(folder: Path, *words: str) -> DataModule:
    config: Any = compose(
        ["method=full", "backbone=vit_tiny", "dataset=breakhis", f"dataset.path={folder}", *words]
    ).config
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return data


def names(data: DataModule, split: str) -> list[str]:
    return [Path(data.row_id(split, row)).name for row in range(data.sizes[split])]


def test_names_say_all() -> None:
    assert parsed("SOB_B_A-14-22549AB-40-001.png") == ("B", "A", "14-22549AB", 40)
    assert parsed("SOB_M_DC-14-2773-400-012.png") == ("M", "DC", "14-2773", 400)
    assert {code: GROUPS[parsed(f"SOB_{g}_{code}-14-1-100-1.png").group] for g, code in  # type: ignore[union-attr]
            [("B", c) for c in ("A", "F", "PT", "TA")] + [("M", c) for c in ("DC", "LC", "MC", "PC")]} == {
        "A": "benign", "F": "benign", "PT": "benign", "TA": "benign",
        "DC": "malignant", "LC": "malignant", "MC": "malignant", "PC": "malignant",
    }  # fmt: skip
    for wrong in ("SOB_M_A-14-1-40-1.png", "SOB_B_XX-14-1-40-1.png", "SOB_B_A-14-1-50-1.png", "cat.png"):
        assert parsed(wrong) is None


def test_labels_are_those_of_the_names(folder: Path) -> None:
    for label, of in (
        ("binary", lambda s: list(GROUPS).index(s.group)),
        ("subtype", lambda s: list(SUBTYPES).index(s.subtype)),
    ):
        data = read(folder, f"dataset.diagnosis={label}")
        assert sum(data.sizes.values()) == 8 * 5 * 6
        for split in data.sizes:
            assert data.labels(split).tolist() == [of(parsed(name)) for name in names(data, split)]
        assert data.described.num_labels == (2 if label == "binary" else 8)
    assert any("left out" in note and "other names" in note for note in data.notes)


def test_the_split_is_the_same_for_both_questions_and_at_every_magnification(folder: Path) -> None:
    whole = read(folder)
    for words in (("dataset.diagnosis=subtype",), ("dataset.magnification='40'",)):
        other = read(folder, *words)
        for split in whole.sizes:
            assert set(names(other, split)) <= set(names(whole, split))
    assert {parsed(name).magnification for name in names(other, "train")} == {40}  # type: ignore[union-attr]


def test_no_patient_is_on_both_sides_where_it_is_asked(folder: Path) -> None:
    def patients(data: DataModule, split: str) -> set[str]:
        return {parsed(name).patient for name in names(data, split)}  # type: ignore[union-attr]

    shares = ("dataset.split_shares.validation=0.2", "dataset.split_shares.test=0.2")
    apart, mixed = read(folder, "dataset.split=patient", *shares), read(folder, *shares)
    assert not patients(apart, "test") & (patients(apart, "train") | patients(apart, "validation"))
    assert patients(mixed, "test") & patients(mixed, "train")
    assert apart.sizes == {"train": 144, "validation": 48, "test": 48}, "each subtype gives one patient of five"
    assert "split by patient" in apart.notes[-1]
    assert "of test are trained on" in mixed.notes[-1]


@pytest.mark.parametrize("words", ["dataset.num_labels=3", "dataset.label_names=[a,b]"])
def test_other_classes_are_refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match="2 classes"):
        read(folder, words)


def test_a_folder_of_other_pictures_and_one_of_two_copies_are_refused(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match="No picture is named"):
        read(tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / place / "SOB_B_A-14-1-40-001.png")
    with pytest.raises(UserError, match="is there twice"):
        read(tmp_path)

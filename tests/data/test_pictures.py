"""Odd pictures and odd folders of them: each is read rightly, noted, or refused; none is silently another one."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import nodes
from transfer_run.data.load import batch_spec, build_data
from transfer_run.data.reading.pictures import in_8_bits
from transfer_run.errors import UserError

SHADES = {"dark": 40, "light": 200}


def save(path: Path, image: Image.Image, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **more)


def shade(value: int) -> Image.Image:
    return Image.new("RGB", (6, 6), (value, value, value))


def classes(root: Path, count: int = 10) -> Path:
    for name, value in SHADES.items():
        for number in range(count):
            save(root / name / f"{number}.png", shade(value + number))
    return root


def read(path: Path, *words: str) -> Any:
    node, model = nodes("dataset=image_folder", "backbone=vit_tiny", *words)
    data = build_data(node | {"path": str(path)}, model, 0)
    data.setup()
    return data


def rows(data: Any) -> dict[str, int]:
    return dict(data.sizes)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_16_bits_are_scaled(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 257 * 100], [257 * 7, 65535]], dtype=np.uint16)
    save(tmp_path / f"a.{kind}", Image.fromarray(values))
    with Image.open(tmp_path / f"a.{kind}") as image:
        assert np.asarray(in_8_bits(image)).tolist() == [[0, 100], [7, 255]]


def test_fractions_are_0_to_1_and_other_values_are_refused(tmp_path: Path) -> None:
    whole = Image.fromarray(np.array([[0.0, 0.2], [0.6, 1.0]], dtype=np.float32))
    assert np.asarray(in_8_bits(whole)).tolist() == [[0, 51], [153, 255]]
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            in_8_bits(Image.fromarray(np.array([[0.0, value]], dtype=np.float32)))
    classes(tmp_path)
    save(tmp_path / "dark" / "99.tif", Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)))
    data = read(tmp_path, "dataset.split_shares.validation=0", "dataset.split_shares.test=0")
    assert rows(data) == {"train": 21}
    with pytest.raises(UserError, match=r"70000 to 70000, are outside 16 bits") as error:
        list(data.split("train")[0:21])
    assert "99.tif" in error.value.where


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_as_it_was_held(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("L", (16, 8), 0)
    upright.paste(255, (0, 0, 8, 8))
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes each orientation, of PIL's transpositions
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose(stored[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", turned, exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(in_8_bits(image)), np.asarray(upright))


def test_hidden_files_and_leftovers_are_no_rows_and_are_said(tmp_path: Path) -> None:
    classes(tmp_path)
    (tmp_path / "dark" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    save(tmp_path / "dark" / ".ipynb_checkpoints" / "0.png", shade(250))
    save(tmp_path / "__MACOSX" / "dark" / "0.png", shade(250))
    save(tmp_path / ".cache" / "0.png", shade(250))
    (tmp_path / "light" / "Thumbs.db").write_text("x")
    (tmp_path / "light" / "notes.txt").write_text("x")
    data = read(tmp_path)
    assert sum(rows(data).values()) == 20
    assert data.label_names == ("dark", "light")
    assert "train: 2 hidden pictures and 2 files that are no picture (.db, .txt) left out" in data.notes


def test_linked_folders_are_read(tmp_path: Path) -> None:
    classes(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for name in SHADES:
        (tmp_path / "linked" / name).mkdir()
        os.symlink(tmp_path / "real" / name, tmp_path / "linked" / name / "below")
    assert rows(read(tmp_path / "linked")) == rows(read(tmp_path / "real"))
    os.symlink(tmp_path / "linked" / "dark", tmp_path / "linked" / "dark" / "again")
    with pytest.raises(UserError, match="in a circle"):
        read(tmp_path / "linked")


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAINING", "test"), ("train", "Valid")])
def test_splits_are_known_whatever_their_case(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, count in zip(names, (10, 3), strict=True):
        classes(tmp_path / name, count)
    data = read(tmp_path)
    assert data.label_names == ("dark", "light")
    second = "test" if names[1].lower() == "test" else "validation"
    assert rows(data)[second] == 6


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for name in ("train", "car", "bus"):
        for number in range(10):
            save(tmp_path / name / f"{number}.png", shade(number))
    data = read(tmp_path)
    assert data.label_names == ("bus", "car", "train")
    assert sum(rows(data).values()) == 30


@pytest.mark.parametrize(("second", "says"), [("val", "stand for the same split"), ("flat", "holds none")])
def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path, second: str, says: str) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "valid")
    if second == "val":
        classes(tmp_path / "val")
    else:
        classes(tmp_path / "test")
        for folder in (tmp_path / "valid").iterdir():
            folder.rename(tmp_path / f"of {folder.name}")
        save(tmp_path / "valid" / "0.png", shade(3))
    with pytest.raises(UserError, match=says):
        read(tmp_path)


def test_no_training_split_is_said(tmp_path: Path) -> None:
    classes(tmp_path / "val")
    classes(tmp_path / "test")
    with pytest.raises(UserError, match="There is no training split"):
        read(tmp_path)


def test_what_stands_beside_the_splits_is_said(tmp_path: Path) -> None:
    for name in ("train", "test"):
        classes(tmp_path / name)
    save(tmp_path / "extra" / "0.png", shade(1))
    (tmp_path / "test" / "light" / "more").mkdir()
    for file in list((tmp_path / "test" / "light").glob("*.png")):
        file.unlink()
    notes = read(tmp_path).notes
    assert f"{tmp_path}: extra beside the splits' folders: left out" in notes
    assert "test: no picture of light" in notes


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_cut_off_picture_of_an_evaluation_split_shows_before_training(tmp_path: Path, split: str, kind: str) -> None:
    for name in ("train", "val", "test"):
        classes(tmp_path / name)
    file = tmp_path / split / "dark" / f"77.{kind}"
    random = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    save(file, Image.fromarray(random))
    whole = file.read_bytes()
    file.write_bytes(whole + b"trailing bytes that some cameras write" * 9)
    read(tmp_path)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be decoded") as error:
        read(tmp_path)
    assert error.value.where == str(file)


def test_paths_in_a_table_start_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "data" / "pictures", 10)
    lines = [f"pictures/{name}/{number}.png,{name}" for name in SHADES for number in range(10)]
    (tmp_path / "data" / "train.csv").write_text("image,label\n" + "\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "data" / "train.csv", tmp_path / "data"):
        data = read(place)
        found = {int(row["labels"]): float(row["pixel_values"].mean()) for row in data.split("train")}
        assert found[0] < found[1]


def test_pictures_without_a_class_are_tested_and_not_scored(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    for number in range(3):
        save(tmp_path / "test" / f"{number}.png", shade(number))
    data = read(tmp_path)
    assert data.labels("test").tolist() == [-100] * 3
    assert "test: 3 of 3 rows have no label; predicted, not scored" in data.notes
    assert data.row_id("test", 1).endswith("test/1.png")
    (tmp_path / "tables").mkdir()
    for split, column in (("train", ",label"), ("test", "")):
        lines = [f"{tmp_path}/test/{n}.png{',x' if column and n else ',y' if column else ''}" for n in range(3)]
        text = "\n".join([f"image{column}", *(lines * 5)])
        (tmp_path / "tables" / f"{split}.csv").write_text(text, encoding="utf-8")
    assert set(read(tmp_path / "tables").labels("test").tolist()) == {-100}


# ---- archives and patterns
def zipped(folder: Path, archive: Path, *more: tuple[str, str]) -> Path:
    with zipfile.ZipFile(archive, "w") as held:
        for file in sorted(folder.rglob("*")):
            held.write(file, file.relative_to(folder.parent))
        for name, text in more:
            held.writestr(name, text)
    return archive


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(data: Any) -> list[tuple[str, int, float]]:
    return [
        (split, int(row["labels"]), float(row["pixel_values"].sum()))
        for split in data.sizes
        for row in data.split(split)[:]
    ]


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_a_folder_in_an_archive_is_that_folder(tmp_path: Path, cache: Path, splits: tuple[str, ...]) -> None:
    for each in splits or (".",):
        classes(tmp_path / "photos" / each, 10)
    archive = zipped(tmp_path / "photos", tmp_path / "photos.zip", ("__MACOSX/photos/dark/._0.png", "x"))
    found = read(archive)
    assert pixels(found) == pixels(read(tmp_path / "photos"))
    assert found.label_names == ("dark", "light")
    assert "photos.zip: unpacked, and read in " in found.notes[0]
    kept = list(cache.rglob("0.png"))
    before = [file.stat().st_ino for file in kept]
    read(archive)
    assert [file.stat().st_ino for file in kept] == before, "it is unpacked once"
    classes(tmp_path / "photos" / (splits or (".",))[-1], 11)
    zipped(tmp_path / "photos", archive)
    assert sum(rows(read(archive)).values()) == sum(rows(found).values()) + 2, "one that was written anew, anew"


def test_an_archive_of_a_table_and_its_pictures(tmp_path: Path, cache: Path) -> None:
    classes(tmp_path / "all" / "pictures")
    lines = [f"pictures/{name}/{number}.png,{name}" for name in SHADES for number in range(10)]
    (tmp_path / "all" / "train.csv").write_text("image,label\n" + "\n".join(lines))
    assert pixels(read(zipped(tmp_path / "all", tmp_path / "all.zip"))) == pixels(read(tmp_path / "all" / "train.csv"))


def test_an_archive_that_cannot_be_meant_is_refused(tmp_path: Path, cache: Path) -> None:
    classes(tmp_path / "photos")
    good = zipped(tmp_path / "photos", tmp_path / "photos.zip")
    (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "spoilt.zip").write_bytes(good.read_bytes().replace(b"IDAT", b"IDAX", 1))
    zipped(tmp_path / "photos", tmp_path / "out.zip", ("../../evil.png", "x"))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    says = {"cut": "cannot be unpacked", "spoilt": "cannot be unpacked", "out": "outside", "empty": "no files"}
    for name, said in says.items():
        with pytest.raises(UserError, match=said) as error:
            read(tmp_path / f"{name}.zip")
        assert str(tmp_path / f"{name}.zip") in error.value.where
    assert not list(cache.rglob("*.png")), "nothing is half unpacked"


@pytest.mark.parametrize("above", ["", "train"])
def test_a_pattern_of_pictures(tmp_path: Path, above: str) -> None:
    classes(tmp_path / "a" / above, 10)
    classes(tmp_path / "b" / above, 4)
    (tmp_path / "a" / above / "dark" / "notes.txt").write_text("x")
    depth = "*/*/*" if above else "*/*"
    assert sum(rows(read(tmp_path / f"[ab]/{depth}")).values()) == 28
    assert "train: 1 file that is no picture (.txt) left out" in read(tmp_path / f"[ab]/{depth}").notes
    if above:
        classes(tmp_path / "b" / "Test", 3)
        assert rows(read(tmp_path / "**" / "*.png"))["test"] == 6
        classes(tmp_path / "c", 3)
        with pytest.raises(UserError, match="others do not"):
            read(tmp_path / "**" / "*.png")


def test_a_pattern_of_tables_of_pictures(tmp_path: Path) -> None:
    classes(tmp_path / "pictures")
    for name in SHADES:
        lines = [f"pictures/{name}/{number}.png,{name}" for number in range(10)]
        (tmp_path / f"{name}.csv").write_text("image,label\n" + "\n".join(lines))
    assert sorted(pixels(read(tmp_path / "*.csv"))) == sorted(pixels(read(tmp_path / "pictures")))


def test_a_pattern_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "pictures")
    (tmp_path / "pictures" / "dark" / "rows.csv").write_text("image,label\n0.png,dark\n")
    with pytest.raises(UserError, match="pictures and tables"):
        read(tmp_path / "pictures" / "**")
    with pytest.raises(UserError, match="no picture and no table"):
        read(tmp_path / "pictures" / "*")


# ---- several labels a picture
def test_several_labels_stand_in_a_table(tmp_path: Path) -> None:
    classes(tmp_path / "pictures")
    said = ["cat|dog", "cat", "", "dog"]
    lines = [f"pictures/dark/{number}.png,{said[number]}" for number in range(4)]
    (tmp_path / "rows.csv").write_text("image,label\n" + "\n".join(lines))
    words = ("dataset.form=multi_label", "dataset.metrics=[micro_f1]", "dataset.split_shares={validation: 0, test: 0}")
    data = read(tmp_path / "rows.csv", *words)
    assert (data.label_names, data.task.num_labels) == (("cat", "dog"), 2)
    batch = next(iter(data.loader("train", batch_size=4, shuffle=False)))
    assert batch["labels"].tolist() == [[1, 1], [1, 0], [-100, -100], [0, 1]]
    assert batch["labels"].is_floating_point()
    assert "train: 1 of 4 rows have no label; not learned from" in data.notes
    with pytest.raises(UserError, match="have no classes"):
        data.labels("train")
    (tmp_path / "test.csv").write_text("image\npictures/light/0.png\n")
    (tmp_path / "rows.csv").rename(tmp_path / "train.csv")
    test = read(tmp_path / "t*.csv", *words).split("test")[0]
    assert test["labels"] == [-100, -100]
    for place in (tmp_path / "pictures", tmp_path / "pictures" / "*" / "*.png"):
        with pytest.raises(UserError, match="several labels stand in a table"):
            read(place, *words)


def test_several_labels_fill_the_planned_batch(tmp_path: Path) -> None:
    node, model = nodes("dataset=image_folder", "backbone=vit_tiny", "dataset.form=multi_label", "dataset.num_labels=3")
    assert batch_spec(node, model, 5)["labels"] == ((5, 3), torch.float32)


def test_what_is_not_read_of_a_picture_is_said(tmp_path: Path) -> None:
    """Transparency and all frames but the first: by headers alone, in files and in tables."""
    first, second = Image.new("RGBA", (4, 4), (9, 9, 9, 0)), Image.new("L", (4, 4), 7)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            first.save(tmp_path / name / f"{i}.png") if i < 3 else second.save(tmp_path / name / f"{i}.png")
    second.save(tmp_path / "dog" / "film.gif", save_all=True, append_images=[Image.new("L", (4, 4), 200)])
    second.convert("P").save(tmp_path / "dog" / "palette.png", transparency=0)
    data = read(tmp_path)
    said = "\n".join(data.notes)
    counts = [int(n) for n in re.findall(r"(\d+) of \d+ pictures have transparent places", said)]
    assert sum(counts) == 7
    assert said.count("the first frame is read, and no other") == 1

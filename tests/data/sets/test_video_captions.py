"""Videos with captions: which frames are read, how short ones are filled up, tables of folders, wrong inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.conftest import data_of, nodes
from transfer_run.data.images.video_text import sampled
from transfer_run.data.load import batch_spec, build_data, build_task
from transfer_run.data.sets.digit_videos import LENGTHS
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

CLIP = ("backbone=clip_tiny", "backbone.tower=both")
GREY = 5
"""Frame n of a video is of the grey GREY n."""


def film(folder: Path, count: int) -> None:
    """Frames 1.png, 2.png, ... of one grey each, and a file that is no frame."""
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("no frame")
    for number in range(1, count + 1):
        Image.new("L", (9, 12), GREY * number).save(folder / f"{number}.png")


def captioned(path: Path, *words: str) -> Any:
    node, backbone = nodes("dataset=video_captions", *CLIP, *words)
    data = build_data(node | {"path": str(path)}, backbone, 0)
    data.setup()
    return data


def greys(pixels: torch.Tensor, data: Any) -> list[int]:
    """Frames (n, C, H, W) as the numbers that `film` gave them."""
    whole = (pixels * float(data.transform.std[0]) + float(data.transform.mean[0])).mean((1, 2, 3)) * 255
    return [round(float(grey)) // GREY for grey in whole]


@pytest.mark.parametrize(
    ("count", "frames", "read"),
    [
        (3, 12, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
        (5, 4, [0, 1, 2, 4]),
        (30, 4, [0, 9, 19, 29]),
        (100, 2, [0, 99]),
        (7, 1, [0]),
        (1, 1, [0]),
    ],
)
def test_frames_are_spread_over_the_whole_video(count: int, frames: int, read: list[int]) -> None:
    assert sampled(count, frames) == read


def test_digit_videos_are_their_own_and_fit_the_plan() -> None:
    data: Any = data_of("dataset=digit_videos", *CLIP)
    assert data.sizes == {"train": 269, "validation": 89, "test": 89}
    captions = [caption for split in data.pairs.values() for caption in split.captions]
    assert len(set(captions)) == len(captions)
    assert max(map(len, captions)) < 40, "nothing is cut"
    for split in data.pairs.values():
        used = [row for video in split.images.parts for row in video]
        assert len(set(used)) == len(used), "no image is in two videos"
        assert {len(video) for video in split.images.parts} == set(LENGTHS)
        for caption, video in zip(split.captions, split.images.parts, strict=True):
            digits = [int(digit) for digit in caption.partition(":")[0].split()]
            assert digits == sorted(split.images.images.labels[video])
    batch = next(iter(data.loader("train", batch_size=6)))
    spec = batch_spec(*nodes("dataset=digit_videos", *CLIP), 6)
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == spec
    assert spec["pixel_values"][0] == (6, 4, 1, 8, 8)
    task = build_task(*nodes("dataset=digit_videos", *CLIP))
    assert (task.form, task.loss, task.headline) == ("retrieval", "infonce", "rsum")


def test_the_plans_shapes_are_the_papers() -> None:
    spec = batch_spec(*nodes("dataset=video_captions", "backbone=openai/clip-vit-base-patch32", CLIP[1]), 32)
    assert {name: shape for name, (shape, _) in spec.items()} == {
        "pixel_values": (32, 12, 3, 224, 224), "frame_mask": (32, 12), "input_ids": (32, 32),
        "attention_mask": (32, 32), "labels": (32,),
    }  # fmt: skip


def test_long_videos_are_sampled_and_short_ones_filled_up(tmp_path: Path) -> None:
    """In the order of time: 2.png before 10.png."""
    film(tmp_path / "long", 30)
    film(tmp_path / "short", 3)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text("video,caption\nlong,a\nshort,b\n")
    data = captioned(tmp_path, "dataset.frames=5")
    batch = next(iter(data.loader("train", batch_size=2, shuffle=False)))
    assert batch["pixel_values"].shape == (2, 5, 1, 8, 8)
    assert greys(batch["pixel_values"][0], data) == [1, 8, 15, 22, 30]
    assert greys(batch["pixel_values"][1, :3], data) == [1, 2, 3]
    assert batch["frame_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert not batch["pixel_values"][1, 3:].any()
    assert batch["labels"].tolist() == [0, 1]
    kept = captioned(tmp_path, "dataset.frames=5", "dataset.keep_in_memory=true")
    for _ in range(2):
        assert torch.equal(kept.split("train")[1]["pixel_values"], data.split("train")[1]["pixel_values"])


def test_a_table_of_videos_with_several_captions(tmp_path: Path) -> None:
    for name in ("a", "b", "3"):
        film(tmp_path / "films" / name, 2)
    (tmp_path / "said.tsv").write_text("clip\tcaption\na\tone\nb\ttwo\na\tthree\n3\tfour\n")
    words = ("dataset.video_column=clip", f"dataset.video_folder={tmp_path / 'films'}",
             "dataset.split_shares.validation=0.34", "dataset.split_shares.test=0.34")  # fmt: skip
    data = captioned(tmp_path / "said.tsv", *words)
    said = sorted(sorted(split.captions) for split in data.pairs.values())
    assert said == [["four"], ["one", "three"], ["two"]], "a video's captions stay together"


@pytest.mark.parametrize(
    ("table", "what", "place"),
    [
        ("film,caption\na,b\n", "no column 'video'", "train.csv"),
        ("video,text\na,b\n", "no column 'caption'", "train.csv"),
        ("video,caption\ngood,b\ngone,c\n", "There is no folder 'gone'", "train.csv, row 2, column 'video'"),
        ("video,caption\nempty,b\n", "'empty' holds no images", "train.csv, row 1, column 'video'"),
        ("video,caption\nfilm.mp4,b\n", "video files are not decoded", "train.csv, row 1, column 'video'"),
        ("video,caption\n,b\n", "names no video", "train.csv, row 1, column 'video'"),
        ("video,caption\n7,b\n", "There is no folder '7'", "train.csv, row 1, column 'video'"),
        ("video,caption\ngood,\n", "caption is missing", "train.csv, row 1, column 'caption'"),
    ],
)
def test_wrong_tables_are_refused_with_their_place(table: str, what: str, place: str, tmp_path: Path) -> None:
    film(tmp_path / "good", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"0")
    (tmp_path / "train.csv").write_text(table)
    with pytest.raises(UserError) as caught:
        captioned(tmp_path / "train.csv")
    assert what in caught.value.what
    assert place in caught.value.where
    assert caught.value.remedy


def test_a_frame_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    film(tmp_path / "a", 1)
    (tmp_path / "a" / "2.png").write_text("no picture")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text("video,caption\na,b\n")
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        captioned(tmp_path).split("train")[0]
    assert caught.value.where.endswith("2.png, frame 2 of 2")


def test_without_a_path_or_frames() -> None:
    with pytest.raises(UserError, match="has no path"):
        data_of("dataset=video_captions", *CLIP)
    with pytest.raises(UserError, match=r"dataset\.frames"):
        compose(["method=full", *CLIP, "dataset=digit_videos", "dataset.frames=0"])

"""`dataset.augment`: what is drawn depends on (seed, epoch, row) alone, and only training sees it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import data_of, nodes
from transfer_run.data.images.augment import Augment, drawn
from transfer_run.data.images.operations import OPERATIONS, operations
from transfer_run.data.images.transform import Transform
from transfer_run.data.load import build_task
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError

NEEDED = {
    "random_crop": "padding=2", "rotation": "degrees=30", "affine": "degrees=10 translate=[0.1,0.1]",
    "gaussian_blur": "kernel_size=3", "solarize": "threshold=100 p=1", "posterize": "bits=2 p=1",
    "sharpness": "sharpness_factor=3 p=1", "timm": "policy=rand-m9-mstd0.5-inc1", "grayscale": "p=1",
    "horizontal_flip": "p=1", "vertical_flip": "p=1", "perspective": "p=1", "equalize": "p=1", "autocontrast": "p=1",
    "invert": "p=1", "elastic": "sigma=2", "random_erasing": "p=1", "trivial_augment": "num_magnitude_bins=20",
}  # fmt: skip
SIZE = 24
WORDS = '["random_resized_crop scale=[0.3,1]",horizontal_flip,rand_augment,random_erasing]'
DIGITS = ("dataset=digits", "backbone=vit_tiny", f"dataset.augment={WORDS}")


def transform(channels: int) -> Transform:
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.4][:channels]
    node = {"size": SIZE, "channels": channels, "mean": mean, "std": std, "interpolation": "bicubic"}
    return Transform(node)


def picture(channels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 200, (20, 16, 3), dtype=np.uint8)
    return transform(channels).convert(Image.fromarray(pixels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_images_of_the_backbones_size_that_differ_from_the_plain_one(
    name: str, channels: int
) -> None:
    plain = transform(channels)
    augment = Augment([f"{name} {NEEDED.get(name, '')}"], plain, "bicubic")
    views = [augment(picture(channels), (0, epoch, 5)) for epoch in range(6)]
    assert all(view.shape == (channels, SIZE, SIZE) and view.dtype == torch.float32 for view in views)
    assert all(bool(view.isfinite().all()) for view in views)
    changed = [not torch.equal(view, plain(picture(channels))) for view in views]
    assert any(changed) or (name == "grayscale" and channels == 1)
    assert torch.equal(views[3], augment(picture(channels), (0, 3, 5)))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original-mstd0.5", "v0", "3a"])
def test_timms_policies_by_their_own_names(policy: str) -> None:
    augment = Augment([f"timm policy={policy}"], transform(3), "bicubic")
    views = [augment(picture(3), (0, epoch, 0)) for epoch in range(8)]
    assert not all(torch.equal(view, views[0]) for view in views)


def test_a_policy_of_timm_at_full_strength_is_timms() -> None:
    """The very transform of timm, under the same state of Python's and NumPy's generators."""
    from timm.data.auto_augment import rand_augment_transform

    plain, policy = transform(3), "rand-m5-n3"
    ours = Augment([f"timm policy={policy}"], plain, "bicubic")(picture(3), (1, 2, 3))
    with drawn((1, 2, 3)):
        theirs = rand_augment_transform(policy, {"translate_const": 10, "img_mean": (102, 128, 153)})
        expected = plain.normalise(theirs(plain.resize(picture(3))))
    assert torch.equal(ours, expected)


def test_every_part_of_the_key_draws_anew_and_leaves_all_generators_as_they_were() -> None:
    augment = Augment(["rand_augment", "timm policy=rand-m9", "random_erasing p=1"], transform(3), "bicubic")
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore[index]
    views = [augment(picture(3), key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert not any(torch.equal(views[0], view) for view in views[1:])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert bool((np.random.get_state()[1] == before[1]).all())  # type: ignore[index]
    assert random.getstate() == before[2]


def by_row(data: Any, epoch: int, **more: Any) -> dict[bytes, torch.Tensor]:
    """Pixels of a training epoch, in a form that does not depend on the order."""
    loader = data.loader("train", augment=True, **more)
    loader.set_epoch(epoch)
    rows = [row for batch in loader for row in batch["pixel_values"]]
    return {row.numpy().tobytes(): row for row in rows}


def test_neither_order_nor_workers_nor_ranks_nor_a_restart_change_what_a_row_shows() -> None:
    data = data_of(*DIGITS)
    alone = by_row(data, 1, batch_size=64).keys()
    assert by_row(data, 1, batch_size=50, num_workers=2, seed=9).keys() == alone
    halves = [by_row(data, 1, batch_size=32, world_size=2, rank=rank).keys() for rank in range(2)]
    assert halves[0] | halves[1] == alone
    assert not by_row(data, 2, batch_size=64).keys() & alone
    loader = data.loader("train", batch_size=64, augment=True)
    loader.load_state_dict({"epoch": 1, "batch": 3})
    assert {row.numpy().tobytes() for batch in loader for row in batch["pixel_values"]} < alone


def test_every_other_pass_sees_plain_rows() -> None:
    varied, plain = data_of(*DIGITS), data_of(*DIGITS[:2])
    for split in ("train", "validation"):
        rows = zip(varied.loader(split, batch_size=64), plain.loader(split, batch_size=64), strict=True)
        assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in rows)
    first = varied.split("train").augmented(Draw(0))["pixel_values"]
    assert not torch.equal(first, plain.split("train")[0]["pixel_values"])
    assert [varied.random_examples(split) for split in ("train", "validation")] == [True, False]
    assert not plain.random_examples("train")


def test_rows_of_a_part_draw_as_they_do_in_the_whole(tmp_path: Any) -> None:
    (tmp_path / "rows.json").write_text('{"rows": {"train": [7, 3]}}')
    part = data_of(*DIGITS, f"dataset.rows={tmp_path / 'rows.json'}")
    whole = data_of(*DIGITS)
    views = [data.split("train").augmented(Draw(row, 4)) for data, row in [(part, 0), (whole, 7)]]
    assert torch.equal(views[0]["pixel_values"], views[1]["pixel_values"])


def test_images_with_captions_vary_too_and_videos_do_not() -> None:
    words = ("dataset=digit_captions", "backbone=clip_tiny", "backbone.tower=both", "dataset.augment=[horizontal_flip]")
    data = data_of(*words)
    plain = data.split("train")[0]["pixel_values"]
    views = [data.split("train").augmented(Draw(0, epoch))["pixel_values"] for epoch in range(8)]
    assert {torch.equal(view, plain) for view in views} == {True, False}
    assert all(torch.equal(view, plain) or torch.equal(view, plain.flip(-1)) for view in views)
    node = nodes("dataset=digit_videos", "backbone=clip_tiny", "backbone.tower=both", "dataset.augment=[invert]")
    with pytest.raises(UserError, match="no single images"):
        build_task(*node)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["horizontal_flop"], "There is no operation 'horizontal_flop'"),
        (["horizontal_flip p"], "is not KEY=VALUE"),
        (["rand_augment magnitud=3"], "has no argument 'magnitud'"),
        (["rotation"], "rotation needs degrees"),
        (["mixup"], "joins rows of a batch"),
        ([""], "Nothing is named where an operation must be"),
        (["horizontal_flip p=2"], "p of horizontal_flip must be a number from 0 to 1, not 2"),
        (["rand_augment magnitude=strong"], "magnitude of rand_augment must be a whole number of at least 0"),
        (["rand_augment magnitude=-7"], "magnitude of rand_augment must be a whole number of at least 0"),
        (["rand_augment num_ops=0"], "num_ops of rand_augment must be a whole number of at least 1"),
        (["posterize bits=9"], "bits of posterize must be a whole number from 0 to 8"),
        (["invert p=true"], "p of invert must be a number from 0 to 1"),
        (["invert", "random_resized_crop"], "cuts from the image before it is resized"),
    ],
)
def test_wrong_words_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        operations(words)
    if "no operation" in says:
        assert "horizontal_flip" in error.value.nearest
    if "no argument" in says:
        assert "magnitude" in error.value.nearest


@pytest.mark.parametrize(
    "words",
    [
        "rand_augment magnitude=99",
        "elastic sigma=9",
        "timm policy=nothing",
        "auto_augment policy=mine",
        "rotation degrees=x",
    ],
)
def test_what_the_library_refuses_is_named(words: str) -> None:
    with pytest.raises(UserError, match="cannot be made like this"):
        Augment([words], transform(3), "bicubic")

"""`cache.taps`: the same numbers to the last bit, blocks that run once, and reasons where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer_run.backbones.families.t5 import T5
from transfer_run.backbones.families.vit import ViT
from transfer_run.data.images.image_data import ImageData
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

LST = ("method=lst", "method.init=random", "method.backbone_dropout=false")
QUICK = ("backbone.weights=random:0", "hardware=cpu", "trainer.progress=none", "trainer.log_every=1", "profiler=none")
DIGITS = (*LST, "backbone=vit_tiny", "dataset=digits", *QUICK, "trainer.max_epochs=2")


def run(folder: Path, *words: str) -> Path:
    return carry_out(compose([*words, f"output_dir={folder}"]))


def numbers(folder: Path) -> str:
    return (folder / "metrics.csv").read_text(encoding="utf-8")


@pytest.fixture
def blocks_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that went through a block of a backbone, block by block."""
    seen: list[int] = []
    for family in (ViT, T5):
        plain = family._step

        def counted(self: Any, state: Any, plain: Any = plain) -> Any:
            seen.append(len(state.hidden))
            return plain(self, state)

        monkeypatch.setattr(family, "_step", counted)
    return seen


def test_every_row_goes_through_the_backbone_once_and_no_number_changes(tmp_path: Path, blocks_run: list[int]) -> None:
    without = run(tmp_path / "without", *DIGITS)
    every_epoch = sum(blocks_run)
    blocks_run.clear()
    stored = run(tmp_path / "stored", *DIGITS, "cache.taps=disk")
    assert numbers(stored) == numbers(without)
    assert stored.name == without.name  # stored taps are no other run
    assert sum(blocks_run) < 0.6 * every_epoch
    blocks_run.clear()
    run(tmp_path / "stored", *DIGITS, "cache.taps=disk", "seed=1")
    assert sum(blocks_run) <= 6  # one row, to see which taps are asked for


SIDE = {
    "unipt": (), "sherl": (), "vqt": (), "qst": ("method.reduction_factor=8",), "res_tuning_bypass": (),
    "linear_probe": (),
}  # fmt: skip


@pytest.mark.parametrize("method", SIDE)
def test_every_method_that_leaves_the_backbone_alone(method: str, tmp_path: Path, blocks_run: list[int]) -> None:
    """The same numbers bit for bit; two epochs run the frozen blocks for little more than one."""
    words = (f"method={method}", *SIDE[method], "backbone=vit_tiny", "dataset=digits", *QUICK, "dataset.batch_size=128",
             "trainer.max_epochs=3")  # fmt: skip
    without = run(tmp_path / "without", *words)
    every_epoch = sum(blocks_run)
    blocks_run.clear()
    stored = run(tmp_path / "stored", *words, "cache.taps=disk")
    assert numbers(stored) == numbers(without)
    late = 0.25 * every_epoch if method == "sherl" else 0  # its last block runs on what is trained
    assert sum(blocks_run) - late < 0.5 * every_epoch


def test_taps_of_another_device_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer_run.experiment.training import taps

    run(tmp_path, *DIGITS, "cache.taps=disk", "trainer.max_steps=1")
    (about,) = (json.loads(path.read_text()) for path in tmp_path.rglob("about.json"))
    assert about["device"] == "cpu"
    monkeypatch.setattr(taps, "device_of", lambda hardware: torch.device("cuda"))
    run(tmp_path, *DIGITS, "cache.taps=disk", "trainer.max_steps=1", "seed=1")
    assert sorted(json.loads(path.read_text())["device"] for path in tmp_path.rglob("about.json")) == ["cpu", "cuda"]


def test_images_that_are_augmented_at_random_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageData, "random_examples", lambda self, split: split == "train")
    with pytest.raises(UserError, match="draws its examples anew") as caught:
        run(tmp_path, *DIGITS, "cache.taps=disk", "trainer.max_steps=1")
    assert "augmentation" in caught.value.remedy


def test_both_stacks_of_an_encoder_decoder_are_stored(tmp_path: Path, blocks_run: list[int]) -> None:
    words = (*LST, "backbone=t5_tiny", "dataset=python_docs", "dataset.answers=names", *QUICK, "dataset.batch_size=416")
    without = run(tmp_path / "without", *words, "trainer.max_steps=5", "trainer.validate_every=9")
    every_epoch = sum(blocks_run)
    blocks_run.clear()
    stored = run(tmp_path / "stored", *words, "trainer.max_steps=5", "trainer.validate_every=9", "cache.taps=ram")
    assert numbers(stored) == numbers(without)
    assert sum(blocks_run) < every_epoch


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        *(
            ((*words, "backbone=vit_tiny", "dataset=digits"), "trains inside the backbone")
            for words in (
                ("method=full",),
                ("method=lora",),
                ("method=hst",),
                ("method=dtl",),
                ("method=vqt", "method.addon=vpt"),
                ("method=vqt", "method.addon=adaptformer"),
            )
        ),
        *(
            ((f"method={name}", "backbone=t5_tiny", "dataset=python_docs"), "dropout draws new noise")
            for name in ("unipt", "sherl")
        ),
        (("method=lst", "backbone=t5_tiny", "dataset=python_docs"), "dropout draws new noise"),
        (
            (*LST, "backbone=t5_tiny", "dataset=python_docs", "dataset.task=span_corruption"),
            "draws its examples anew",
        ),
    ],
)
def test_it_refuses_with_the_reason(words: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        run(tmp_path, *words, *QUICK, "cache.taps=disk", "trainer.max_steps=1")
    assert caught.value.where == "cache.taps=disk"
    assert caught.value.remedy

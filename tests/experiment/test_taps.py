"""`cache.taps`: the same numbers to the last bit, blocks that run once, and reasons where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transfer_run.backbones.t5 import T5
from transfer_run.backbones.vit import ViT
from transfer_run.errors import UserError
from transfer_run.experiment.compose import compose
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
        (("method=full", "backbone=vit_tiny", "dataset=digits"), "trains inside the backbone"),
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

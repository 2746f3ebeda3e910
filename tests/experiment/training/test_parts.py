"""A step that runs out of memory is taken again in smaller parts, to the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method

WORDS = ("method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu",
         "trainer.progress=none", "trainer.max_steps=4", "profiler=none", "dataset.batch_size=40",
         "optimizer=sgd")  # fmt: skip
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB."


def run(folder: Path, *words: str) -> Path:
    return carry_out(compose([*WORDS, f"output_dir={folder}", *words]))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "model" / "model.safetensors")


def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds the activations of 15 rows; how many rows each loss was of."""
    asked: list[int] = []
    whole = Method.training_loss

    def limited(self: Method, batch: Any, **words: Any) -> Tensor:
        rows = len(next(iter(batch.values())))
        loss = whole(self, batch, **words)
        if rows > 15:
            raise torch.OutOfMemoryError(OOM)
        asked.append(rows)
        return loss

    monkeypatch.setattr(Method, "training_loss", limited)
    return asked


def test_halved_until_it_fits_and_equal_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(run(tmp_path / "whole"))
    asked = limit(monkeypatch)
    folder = run(tmp_path / "halved", "trainer.oom=halve")
    assert asked == [10] * 16
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "trained on in 2 parts" in log
    assert "trained on in 4 parts" in log
    assert "trained on in 8 parts" not in log


def test_without_it_the_run_fails_and_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = limit(monkeypatch)
    with pytest.raises(RunFailed, match=r"trainer\.oom=halve"):
        run(tmp_path)
    assert not asked


def test_a_row_that_does_not_fit_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Method, batch: Any, **words: Any) -> Tensor:
        raise torch.OutOfMemoryError(OOM)

    monkeypatch.setattr(Method, "training_loss", never)
    with pytest.raises(RunFailed, match="out of memory"):
        run(tmp_path, "trainer.oom=halve")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["trainer.accumulate=2"], "sums the gradients"),
        (["backbone=cnn_tiny"], "batch norms"),
        (["backbone=clip_tiny", "backbone.tower=both", "dataset=digit_captions"], "compared with all rows"),
    ],
)
def test_where_a_batch_is_one_thing_it_is_refused(words: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        run(tmp_path, "trainer.oom=halve", *words)

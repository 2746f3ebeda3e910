"""What validations decide, and when they come: the best weights, the end of training; a run gone on decides alike."""

from __future__ import annotations

import csv
import operator
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer_run.errors import Preempted
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.training.checkpoints import Checkpoints, Selection

WORDS = ("method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu",
         "profiler=none", "trainer.progress=none", "trainer.log_every=1", "dataset.batch_size=250")  # fmt: skip
"""Three batches an epoch."""


def config(output: Path, *words: str) -> Run:
    return compose([*WORDS, f"output_dir={output}", *words])


def validations(folder: Path, metric: str = "accuracy") -> dict[int, float]:
    """Scores of the validations by step."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"validation/{metric}")]
    return {int(row["step"]): float(row[f"validation/{metric}"]) for row in rows}


def stopped_at(step: int, cfg: Run) -> None:
    """Carry out a run that a cluster stops behind optimizer step `step`."""
    ordinary = Checkpoints.on_train_batch_end

    def stop(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            self.signals.asked = signal.SIGTERM
        ordinary(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop)
        with pytest.raises(Preempted):
            carry_out(cfg)


def same(first: Path, second: Path) -> None:
    for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_a_selection_knows_what_is_better_and_counts_what_is_not() -> None:
    errors = Selection(operator.lt, patience=2)
    assert [errors.count(value) for value in (0.5, 0.6, 0.4, None, 0.4)] == [True, False, True, False, False]
    assert (errors.best, errors.since, errors.exhausted) == (0.4, 1, False)
    assert not errors.count(float("nan"))
    assert errors.exhausted
    accuracies = Selection(operator.gt)
    assert [accuracies.count(value) for value in (0.5, 0.6, 0.4)] == [True, True, False]
    assert not accuracies.exhausted


def test_the_smallest_perplexity_is_the_best(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\n".join(f"line {number} of the text" for number in range(60)), "utf-8")
    words = ["method=full", "backbone=gpt2_tiny", "dataset=text_files", "dataset.form=language_modeling"]
    words += [f"dataset.path={tmp_path / 'own.txt'}", "dataset.max_source_length=8", "dataset.metrics=[perplexity]"]
    words += ["backbone.weights=random:0", "hardware=cpu", "profiler=none", "trainer.progress=none"]
    words += ["optimizer.lr=0.003", "trainer.max_steps=3", "trainer.validate_steps=1", "trainer.select=best"]
    folder = carry_out(compose([*words, f"output_dir={tmp_path}"]))
    seen = validations(folder, "perplexity")
    assert list(seen) == [1, 2, 3]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(seen, key=lambda step: seen[step]) != max(seen, key=lambda step: seen[step])


@pytest.mark.parametrize("more", [(), ("trainer.validate_steps=2",)])
def test_a_run_without_a_validation_says_that_there_is_nothing_to_choose_by(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    folder = carry_out(config(tmp_path, "trainer.max_steps=2", "trainer.select=best", *more))
    said = "before its first validation" in (folder / "run.log").read_text("utf-8")
    assert said == (not validations(folder)) == (not more)


@pytest.mark.parametrize(
    ("more", "at", "stop"),
    [
        ((), [2, 4, 6, 8], 2),
        ((), [2, 4, 6, 8], 6),
        (("trainer.accumulate=2",), [2, 4, 6, 8], 3),
    ],
    ids=["mid epoch", "at an epoch's end", "accumulated"],
)
def test_validations_by_steps_come_where_they_shall_in_a_run_gone_on_too(
    more: tuple[str, ...], at: list[int], stop: int, tmp_path: Path
) -> None:
    """Accumulated, an epoch of three batches has two steps, of two batches and of one."""
    words = ("trainer.max_steps=8", "trainer.validate_steps=2", "trainer.select=best", "optimizer.lr=0.05", *more)
    whole = carry_out(config(tmp_path / "whole", *words))
    assert list(validations(whole)) == at
    cfg = config(tmp_path / "broken", *words)
    stopped_at(stop, cfg)
    same(carry_out(cfg), whole)


PATIENT = ("trainer.max_epochs=9", "trainer.patience=2", "trainer.select=best", "optimizer.lr=1e-30")
"""A rate at which nothing is learned: the first validation is the best one."""


@pytest.mark.parametrize(("more", "last"), [((), 9), (("trainer.validate_steps=1",), 3)], ids=["by epochs", "by steps"])
def test_training_ends_when_patience_does_in_a_run_gone_on_too(
    more: tuple[str, ...], last: int, tmp_path: Path
) -> None:
    whole = carry_out(config(tmp_path / "whole", *PATIENT, *more))
    assert max(validations(whole)) == last
    cfg = config(tmp_path / "broken", *PATIENT, *more)
    stopped_at(last, cfg)  # asked to stop where training ends by itself: that validation is repeated
    same(carry_out(cfg), whole)

"""`dataset.beside`: another data set in every step, named by the run, declared by the method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.experiment.training.test_own_steps import composed, result, weights
from tests.matrix.smallest import carried_out_in_two
from transfer_run.errors import UserError
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out

UNLABELED = 'dataset.beside.unlabeled="digits classes=[8,9] batch_size=48"'


def test_a_run_is_planned_as_measured_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Stopped in the middle of the second epoch; of 48 unlabelled rows beside 64."""
    words = ("method=consistent", "dataset.batch_size=64", UNLABELED, "trainer.max_epochs=2")
    cfg = composed(tmp_path / "whole", *words)
    whole = carry_out(cfg)
    stopped = carried_out_in_two(composed(tmp_path / "stopped", *words), 15)
    first, second = weights(whole), weights(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (stopped / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    plan, memory = plan_run(cfg, "cpu"), result(whole)["memory"]
    assert plan.shapes["unlabeled/pixel_values"][0] == (48, 1, 8, 8)
    for phase in ("forward", "backward", "step", "evaluation"):
        assert plan.memory["phases"][phase]["peak"] == pytest.approx(memory["phases"][phase]["peak"], rel=0.02), phase
    sizes = [side["phases"]["forward"]["by_kind"]["inputs"] for side in (plan.memory, memory)]
    assert sizes[0] == sizes[1] == 64 * (64 * 4 + 8) + 48 * (64 * 4 + 8)


def test_a_batch_without_a_size_of_its_own_is_as_large_as_the_runs(tmp_path: Path) -> None:
    cfg = composed(tmp_path, "method=consistent", "dataset.batch_size=24", "dataset.beside.unlabeled=digits")
    assert plan_run(cfg, "cpu").shapes["unlabeled/labels"][0] == (24,)
    assert cfg.config["dataset"]["beside"]["unlabeled"]["classes"] == [5, 6, 7, 8, 9]


def test_what_is_read_beside_is_part_of_the_identity(tmp_path: Path) -> None:
    named = [composed(tmp_path, "method=consistent", f"dataset.beside.unlabeled={words}") for words in
             ("digits", '"digits batch_size=8"', '"digits classes=[8,9]"')]  # fmt: skip
    assert len({cfg.identity for cfg in named}) == 3
    assert named[0].identity == composed(tmp_path, "method=consistent", 'dataset.beside.unlabeled="digits"').identity


@pytest.mark.parametrize(
    ("words", "where", "says"),
    [
        (["method=consistent"], "dataset.beside.unlabeled", "images without labels"),
        (["method=consistent", UNLABELED, "dataset.beside.unlabelled=digits"], "unlabelled", "reads unlabeled, more"),
        (["method=full", UNLABELED], "dataset.beside.unlabeled", "own data alone"),
        (["method=consistent", "dataset.beside.unlabeled=digit"], "unlabeled: digit", "no dataset 'digit'"),
        (["method=consistent", 'dataset.beside.unlabeled="digits klasses=[1]"'], "klasses", "klasses"),
        (["method=consistent", UNLABELED, "cache.taps=ram"], "cache.taps", "inside the backbone"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(tmp_path: Path, words: list[str], where: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        carry_out(composed(tmp_path, *words, "trainer.max_steps=1"))
    assert where in error.value.where

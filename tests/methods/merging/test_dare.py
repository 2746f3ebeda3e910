"""The Checks of DARE and task arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.methods.merging.toy import LONG, equal, flat, merged, random_models, streamed
from transfer_run.errors import UserError
from transfer_run.methods.merging.dare_linear import DareLinearRule
from transfer_run.methods.merging.dare_ties import DareTiesRule
from transfer_run.methods.merging.engine.stream import Piece
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule
from transfer_run.methods.merging.ties import TiesRule
from transfer_run.methods.merging.trimming.drop import Drop


def test_the_mean_over_many_seeds_is_the_change() -> None:
    """Check 10."""
    change = torch.tensor([1.0, -2.0, 0.5, 0.0])
    total = torch.zeros(4)
    for seed in range(4000):
        total += Drop(0.9, seed)(change.clone(), Piece("x", 0, 4), 0)
    assert torch.allclose(total / 4000, change, atol=0.25)


def test_kept_changes_are_rescaled_and_models_and_tensors_have_their_own_masks() -> None:
    ones = torch.ones(20000)
    masks = [
        Drop(0.75, seed)(ones.clone(), Piece(name, 0, len(ones)), model)
        for seed, name, model in ((0, "x", 0), (0, "x", 1), (0, "y", 0), (1, "x", 0))
    ]
    for i, mask in enumerate(masks):
        assert mask.unique().tolist() == [0.0, 4.0]
        assert 0.23 < float((mask > 0).float().mean()) < 0.27
        for other in masks[:i]:
            assert abs(float(((mask > 0) & (other > 0)).float().mean()) - 0.0625) < 0.01  # independent


@pytest.mark.parametrize("kind", ["linear", "ties"])
def test_rate_zero_is_the_identity(kind: str) -> None:
    base, models = random_models(3)
    if kind == "linear":
        assert equal(merged(base, models, DareLinearRule(Drop(0.0, 1))), merged(base, models, TaskArithmeticRule()))
    else:
        assert equal(merged(base, models, DareTiesRule(Drop(0.0, 1))), merged(base, models, TiesRule(keep=1.0)))


@pytest.mark.parametrize("kind", ["linear", "ties"])
def test_masks_do_not_depend_on_the_piece_size(kind: str, tmp_path: Path) -> None:
    base, models = random_models(3, LONG)
    made = DareLinearRule if kind == "linear" else DareTiesRule
    whole = merged(base, models, made(Drop(0.9, 3)), chunk_bytes=1e9)
    pieces = streamed(base, models, made(Drop(0.9, 3)), tmp_path, chunk_bytes=1)
    assert equal(whole, pieces)
    assert not equal(whole, merged(base, models, made(Drop(0.9, 4))))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_leaves_nothing_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="drop rate"):
        Drop(rate, 0)


def test_weights_of_task_arithmetic() -> None:
    base, models = random_models(2)
    out = flat(merged(base, models, TaskArithmeticRule(0.5, weights=[1.0, -1.0])))
    wanted = flat(base) + 0.5 * (flat(models[0]) - flat(models[1]))
    assert torch.allclose(out, wanted, atol=1e-6)

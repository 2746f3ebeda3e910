"""The learning rate finder: where it stops, what it chooses, what it leaves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from transfer_run.methods.domain.forecasting.rate_finder import (
    HIGH,
    LOW,
    STEPS,
    before_explosion,
    find_rate,
    rates,
    smoothed,
    valley,
)
from transfer_run.methods.work import Work


def test_the_rates_rise_by_the_same_factor() -> None:
    tried = rates()
    assert (len(tried), tried[0], tried[-1]) == (STEPS, LOW, pytest.approx(HIGH))
    assert tried[50] / tried[49] == pytest.approx(tried[1] / tried[0])


def test_the_mean_is_corrected_at_its_start() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0] * 3)
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.98 * 0.02 * 1 + 0.02 * 2) / (1 - 0.98**2))


def test_what_lies_behind_four_times_the_best_is_not_read() -> None:
    assert before_explosion([2, 1, 3.9, 4.1, 0.5]) == [2, 1, 3.9]
    assert before_explosion([1, 1, 1]) == [1, 1, 1]


def test_the_valley_is_the_longest_fall() -> None:
    """Falling from step 30 to step 59: a third is 10, so step 29 + 10 + 5 (fastai counts from one before the fall)."""
    losses = [1.0] * 30 + [1.0 - 0.02 * (k + 1) for k in range(30)] + [1.0] * 40
    assert valley(rates(), losses) == rates()[28 + 10 + 5]
    assert valley(rates(), [1.0] * 100) == rates()[0]


def test_weights_are_as_before_and_a_good_rate_is_found() -> None:
    """A quadratic of curvature 1 under Adam: the rate lies well above the smallest and below the explosion."""
    model, target = nn.Linear(4, 1), torch.randn(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["x"]).squeeze(-1) - batch["x"] @ target).square().mean()

    def batches(first: int) -> itertools.repeat[dict[str, Tensor]]:
        return itertools.repeat({"x": torch.eye(4)})

    found = find_rate(model, loss, batches, torch.optim.AdamW(model.parameters()), Work())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert 1e-4 < found < 1
    assert math.isfinite(found)

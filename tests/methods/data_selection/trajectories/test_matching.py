"""Checks 2 to 5 of the method's spec; both ways to the gradients; cut short; what a step reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.methods.data_selection.trajectories.matching import (
    Goal,
    Matched,
    Step,
    Student,
    balance,
    distance,
    goals,
    stepwise,
    whole,
)

INPUTS, HIDDEN, CLASSES = 6, 5, 3
WEIGHTS = HIDDEN * INPUTS + HIDDEN + CLASSES * HIDDEN + CLASSES
Way = Callable[..., Matched]
ways = pytest.mark.parametrize("way", [whole, stepwise])


def network(theta: Tensor, x: Tensor) -> Tensor:
    w1, b1, w2, b2 = theta.split([HIDDEN * INPUTS, HIDDEN, CLASSES * HIDDEN, CLASSES])
    return torch.tanh(x @ w1.view(HIDDEN, INPUTS).T + b1) @ w2.view(CLASSES, HIDDEN).T + b2


def case(steps: int = 7, momentum: float = 0.9, **words: Any) -> dict[str, Any]:
    """Random weights, images and goals in float64; the last goal is one that a student reaches nearly."""
    random = {"dtype": torch.float64}
    labels = torch.arange(9) % CLASSES
    start = torch.randn(WEIGHTS, **random)
    targets = start + 0.3 * torch.randn(3, WEIGHTS, **random)
    return {
        "student": Student(network, labels, [Step()] * steps, momentum, **words),
        "images": torch.randn(9, INPUTS, **random).requires_grad_(),
        "rate": torch.tensor(0.07, **random).requires_grad_(),
        "start": start,
        "aims": goals(targets, steps, "adaptive"),
    }


def close(one: Matched, other: Matched) -> None:
    for name in ("loss", "images", "rate"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-12)
    assert [float(t) for t in one.terms] == pytest.approx([float(t) for t in other.terms], rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [3, 4, 7, 16])
def test_step_by_step_has_the_same_gradients(steps: int, momentum: float) -> None:
    words = case(steps, momentum, factor=1.3)
    close(whole(**words), stepwise(**words))


@pytest.mark.parametrize("truncate", [1, 3, 5, 7])
def test_cut_short_both_ways_agree(truncate: int) -> None:
    words = case()
    cut = whole(**words, truncate=truncate)
    close(cut, stepwise(**words, truncate=truncate))
    every = whole(**words)
    assert torch.equal(cut.loss, every.loss)
    assert torch.equal(cut.images, every.images) == (truncate == 7)


@ways
def test_without_a_step_size_nothing_moves(way: Way) -> None:
    words = case() | {"rate": torch.zeros((), dtype=torch.float64).requires_grad_()}
    words["aims"] = [Goal(aim.after, aim.theta) for aim in words["aims"]]
    found = way(**words)
    assert [float(term) for term in found.terms] == [1.0, 1.0, 1.0]
    assert float(found.loss) == 3.0
    assert torch.count_nonzero(found.images) == 0
    assert float(found.rate) != 0


@ways
def test_an_experts_own_data_lead_where_it_went(way: Way) -> None:
    words = case(momentum=0.0)
    theta = words["start"].clone().requires_grad_()
    for _ in range(7):  # plain SGD on the whole data set, written out
        loss = F.cross_entropy(network(theta, words["images"].detach()), words["student"].labels)
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.07 * gradient).detach().requires_grad_()
    found = way(**words | {"aims": [Goal(7, theta.detach())]})
    assert float(found.loss) < 1e-25


@ways
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_meta_gradient_is_the_slope(way: Way, momentum: float) -> None:
    """Central differences; a buffer that were detached would be seen here."""
    words = case(momentum=momentum)
    found = way(**words)
    step = 1e-5

    def value(images: Tensor, rate: Tensor) -> float:
        return float(whole(**words | {"images": images.requires_grad_(), "rate": rate.requires_grad_()}).loss)

    images, rate = words["images"].detach(), words["rate"].detach()
    for place in ((0, 0), (4, 3), (8, 5)):
        moved = torch.zeros_like(images)
        moved[place] = step
        slope = (value(images + moved, rate.clone()) - value(images - moved, rate.clone())) / (2 * step)
        assert float(found.images[place]) == pytest.approx(slope, rel=1e-6)
    slope = (value(images.clone(), rate + step) - value(images.clone(), rate - step)) / (2 * step)
    assert float(found.rate) == pytest.approx(slope, rel=1e-6)


@ways
def test_a_step_reads_its_own_rows_as_they_are_varied(way: Way) -> None:
    words = case(steps=3, momentum=0.0)
    rows = [torch.tensor([0, 1, 2]), torch.tensor([8, 4]), torch.tensor([0])]
    steps = [Step(chosen, lambda images, n=n: images * (n + 2)) for n, chosen in enumerate(rows)]
    student = Student(network, words["student"].labels, steps)
    found = way(**words | {"student": student})
    touched = found.images.abs().sum(1) > 0
    assert touched.tolist() == [n in (0, 1, 2, 4, 8) for n in range(9)]
    theta = words["start"].clone().requires_grad_()
    for n, chosen in enumerate(rows):
        images = words["images"].detach()[chosen] * (n + 2)
        loss = F.cross_entropy(network(theta, images), words["student"].labels[chosen])
        theta = (theta - 0.07 * torch.autograd.grad(loss, theta)[0]).detach().requires_grad_()
    aim = words["aims"][-1]
    assert float(found.terms[-1]) == pytest.approx(float(distance(theta, aim.theta, words["start"])), rel=1e-12)


def test_goals_and_their_weights() -> None:
    targets = torch.randn(3, 4)
    assert [(aim.after, aim.weight) for aim in goals(targets, 20, "sum")] == [(6, 1), (12, 1), (20, 1)]
    adaptive = [aim.weight for aim in goals(targets, 20, "adaptive")]
    assert adaptive == pytest.approx([1 / 3, 2 / 3, 1])
    (only,) = goals(targets, 20, "none")
    assert (only.after, only.weight) == (20, 1)
    assert torch.equal(only.theta, targets[2])
    assert torch.equal(goals(targets, 20, "sum")[1].theta, targets[1])


def test_balance_is_a_log_on_both_sides_of_the_middle() -> None:
    assert balance(15, 20) == pytest.approx(math.log(13, 5))
    assert balance(4, 20) == pytest.approx(1 / math.log(14, 5))
    assert balance(10, 20) == pytest.approx(math.log(8, 5))

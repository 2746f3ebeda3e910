"""A method's own step in a plain loop: gradients of one optimizer alone, sums over batches, clipping, second order."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transfer_run.hardware.steps import Steps


class Linear:
    """`step` on the mean of w x, however the batch is made up."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.ones(2))
        self.updated: list[bool] = []

    def step(self, batch: torch.Tensor, steps: Steps) -> torch.Tensor:
        loss = (batch * self.weight).sum(1).mean()
        steps.backward(loss)
        self.updated.append(steps.step())
        return loss


def test_gradients_summed_over_batches_are_those_of_all_their_rows() -> None:
    rows = torch.randn(8, 2)
    one, two = Linear(), Linear()
    whole = Steps({"a": torch.optim.SGD([one.weight], lr=0.5)})
    parts = Steps({"a": torch.optim.SGD([two.weight], lr=0.5)}, accumulate=2)
    whole.carry_out(one, rows)
    for number in (0, 1):
        parts.carry_out(two, rows[4 * number : 4 * number + 4], last=number == 1)
    assert torch.allclose(one.weight, two.weight)
    assert (two.updated, parts.done, whole.done) == ([False, True], 1, 1)


def test_each_optimizers_gradients_are_clipped_by_themselves() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    steps = Steps({"a": torch.optim.SGD([a], lr=1.0), "b": torch.optim.SGD([b], lr=1.0)}, clip=0.5)

    class Method:
        def step(self, batch: Any, steps: Steps) -> torch.Tensor:
            loss = 100 * a.sum() + 0.25 * b.sum()
            steps.backward(loss)
            steps.step()
            return loss

    steps.carry_out(Method(), None)
    assert torch.allclose(torch.cat([a, b]), torch.tensor([0.5, 0.75]))


def test_gradients_of_one_optimizer_alone_and_as_long_as_they_are_asked_for() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    steps = Steps({"a": torch.optim.SGD([a], lr=0.5, momentum=0.9), "b": torch.optim.SGD([b], lr=0.5)})

    class Method:
        def step(self, batch: Any, steps: Steps) -> torch.Tensor:
            loss = (a * b).sum()
            steps.backward(loss, "a")
            assert b.grad is None
            assert steps.step("a", keep=True)
            assert a.grad is not None
            assert a.grad.tolist() == [1, 1]
            steps.fresh("a")
            return loss

    assert float(steps.carry_out(Method(), None)) == 2
    assert a.tolist() == [0.5, 0.5]
    assert b.tolist() == [1, 1]
    assert a.grad is None
    assert not steps.optimizers["a"].state


def test_a_gradient_of_a_gradient() -> None:
    """outer = (w - r dw)^2 with inner = w^2 / 2, so that outer = ((1 - r) w)^2."""
    weight, rate = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(0.25))
    steps = Steps({"rate": torch.optim.SGD([rate], lr=0.0), "weight": torch.optim.SGD([weight], lr=0.0)})

    class Method:
        def step(self, batch: Any, steps: Steps) -> torch.Tensor:
            (slope,) = torch.autograd.grad(weight.square() / 2, [weight], create_graph=True)
            outer = (weight - rate * slope).square()
            steps.backward(outer)
            assert torch.isclose(weight.grad, 2 * (1 - rate) ** 2 * weight)
            assert torch.isclose(rate.grad, -2 * (1 - rate) * weight**2)
            return outer

    steps.carry_out(Method(), None)

"""A network as a function of its weights: check 6 of the method's spec, second derivatives, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from tests import small
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork, perturbed
from transfer_run.task import Task

TASK = Task("classification", 3)


def network(name: str = "chain") -> FlatNetwork:
    return FlatNetwork(Method(small.backbone(name), TASK))


@pytest.mark.parametrize("name", ["chain", "vit"])
def test_called_with_its_own_weights_it_is_itself(name: str) -> None:
    flat, images = network(name), small.batch(name, "classification")["pixel_values"]
    theta = flat.vector()
    assert len(theta) == flat.count == sum(p.numel() for p in flat.method.parameters())
    with torch.no_grad():
        assert torch.equal(flat(theta, images), flat.own(images))
        other = flat(theta + 0.1, images)
        assert not torch.equal(other, flat.own(images))
        parts = flat.parts(theta + 0.1)
        moved = copy.deepcopy(flat.method)
        for key, parameter in moved.named_parameters():
            parameter.copy_(parts[key])
        assert torch.equal(FlatNetwork(moved).own(images), other)


@pytest.mark.parametrize("name", ["chain", "vit"])
def test_it_has_a_second_derivative(name: str) -> None:
    """Of a step on images with respect to the images: by attention, too."""
    flat = FlatNetwork(Method(small.backbone(name).double(), TASK))
    images = small.batch(name, "classification")["pixel_values"][:2].double().requires_grad_()
    theta = flat.vector().requires_grad_()

    def pulled(seen: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(flat(theta, seen).square().sum(), theta, create_graph=True)
        return gradient.square().sum()

    (found,) = torch.autograd.grad(pulled(images), images)
    place, step = (0, 0, 3, 3), 1e-5
    moved = torch.zeros_like(images)
    moved[place] = step
    slope = float((pulled(images.detach() + moved) - pulled(images.detach() - moved)).detach()) / (2 * step)
    assert float(found[place]) == pytest.approx(slope, rel=1e-4)


def test_fresh_weights_follow_the_seed() -> None:
    flat = network()
    before = flat.vector()
    flat.begin(1)
    first = flat.vector()
    flat.begin(2)
    other = flat.vector()
    flat.begin(1)
    assert torch.equal(flat.vector(), first)
    assert not torch.equal(first, other)
    assert not torch.equal(first, before)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_only_convolutions_are_perturbed(alpha: float) -> None:
    flat = network()
    theta = flat.vector().double()
    before, after = flat.parts(theta), flat.parts(perturbed(theta, flat, alpha))
    assert {part.dim() for part in before.values()} == {1, 2, 4}
    for name, part in before.items():
        if part.dim() == 4:
            assert float(((after[name] - part) / part).norm()) == pytest.approx(alpha, rel=1e-6)
        else:
            assert torch.equal(after[name], part)
    assert torch.equal(perturbed(theta, flat, 0), theta)


def test_statistics_of_batches_are_refused() -> None:
    with pytest.raises(UserError, match="keeps statistics of batches"):
        network("cnn")

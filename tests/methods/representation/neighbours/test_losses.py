"""Losses over the nearest references, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from transfer_run.methods.representation.neighbours.losses import (
    leave_one_out,
    nearest,
    posterior,
    supcon,
    with_positive,
)


def look(s: Tensor, labels: Tensor, references: Tensor, k: int, t: float = 1.0, counts: Tensor | None = None,
         add: bool = True) -> Tensor:  # fmt: skip
    counts = torch.ones_like(s, dtype=torch.bool) if counts is None else counts
    same = references[None] == labels[:, None]
    chosen = nearest(s, counts, k)
    chosen = with_positive(s, chosen, counts, same) if add else chosen
    return leave_one_out(s, chosen, same, t, 3)


def test_the_closed_form() -> None:
    """Check 1."""
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]) @ torch.tensor([1.0, 0.0])
    references = torch.tensor([0, 1, 0])
    for label, expected in ((0, 0.3133), (1, 1.3133)):
        assert float(look(s[None], torch.tensor([label]), references, 2)) == pytest.approx(expected, abs=1e-4)
    chosen = nearest(s[None], torch.ones(1, 3, dtype=torch.bool), 2)
    assert chosen.tolist() == [[True, True, False]]
    said = posterior(s[None], chosen, references, 1.0, 3).exp()
    assert said[0].tolist() == pytest.approx([0.7311, 0.2689, 0.0], abs=1e-4)


def test_one_neighbour_and_the_rule_without_a_positive() -> None:
    """Check 2."""
    s, references = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([0, 1, 1])
    assert float(look(s, torch.tensor([0]), references, 1)) == pytest.approx(0)
    assert float(look(s, torch.tensor([1]), references, 1)) == pytest.approx(0)  # the nearest of its label alone
    two = look(s, torch.tensor([1]), torch.tensor([0, 0, 1]), 2)
    assert float(two) == pytest.approx(math.log(math.exp(0.9) + math.exp(0.1)) - 0.1, abs=1e-6)
    both = look(s.repeat(2, 1), torch.tensor([1, 0]), references, 1, add=False)
    assert float(both) == pytest.approx(0)  # the first row is left out of the mean
    none = look(s, torch.tensor([2]), references, 2)
    assert float(none) == 0
    assert torch.isfinite(none)


def test_all_references_are_neighbourhood_components_and_far_ones_do_not_count() -> None:
    """Check 3."""
    s, references, labels = torch.rand(5, 12), torch.arange(12) % 3, torch.arange(5) % 3
    shares = (s / 0.2).softmax(1)
    dense = -torch.stack([shares[i, references == labels[i]].sum().log() for i in range(5)]).mean()
    torch.testing.assert_close(look(s, labels, references, 12, 0.2), dense)
    more = torch.cat([s, torch.full((5, 7), -1.0)], 1)
    few = look(s, labels, references, 4, 0.2)
    torch.testing.assert_close(look(more, labels, torch.cat([references, torch.zeros(7).long()]), 4, 0.2), few)


def test_a_class_may_have_two_clusters() -> None:
    """Check 4: nothing is left to learn, where SupCon still pulls."""
    points = torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]]).repeat_interleave(10, 0)
    labels = torch.tensor([0, 0, 1, 1]).repeat_interleave(10)
    s, others = points @ points.t(), ~torch.eye(40, dtype=torch.bool)
    assert float(look(s, labels, labels, 5, 0.1, others)) == pytest.approx(0, abs=1e-6)
    same = labels[None] == labels[:, None]
    assert float(supcon(s, others, same, 0.1, 2)) > 1


def test_supcon_is_its_formula() -> None:
    s, references, labels = torch.rand(4, 9), torch.arange(9) % 3, torch.arange(4) % 3
    logs = (s / 0.5).log_softmax(1)
    expected = -torch.stack([logs[i, references == labels[i]].mean() for i in range(4)]).mean()
    same = references[None] == labels[:, None]
    torch.testing.assert_close(supcon(s, torch.ones(4, 9, dtype=torch.bool), same, 0.5, 3), expected)


def test_the_gradient_is_the_formula() -> None:
    """Check 5."""
    s, references, labels = torch.rand(3, 8).requires_grad_(), torch.arange(8) % 2, torch.tensor([0, 1, 0])
    chosen = nearest(s, torch.ones(3, 8, dtype=torch.bool), 5)
    same = references[None] == labels[:, None]
    (found,) = torch.autograd.grad(leave_one_out(s, chosen, same, 0.3, 2), s)
    weights = (s.detach() / 0.3).masked_fill(~chosen, float("-inf")).softmax(1)
    right = (weights * same).sum(1, keepdim=True)
    torch.testing.assert_close(found, (weights - same * weights / right) / (3 * 0.3))
    assert (found[~chosen] == 0).all()


def test_without_references_the_posterior_is_uniform_and_moves_nothing() -> None:
    s, counts = torch.rand(2, 4).requires_grad_(), torch.zeros(2, 4, dtype=torch.bool)
    for loss in (look(s, torch.tensor([0, 1]), torch.zeros(4).long(), 3, counts=counts),
                 supcon(s, counts, torch.ones(2, 4, dtype=torch.bool), 1.0, 3)):  # fmt: skip
        assert float(loss.detach()) == pytest.approx(math.log(3))
        assert (torch.autograd.grad(loss, s)[0] == 0).all()
    assert (
        posterior(s.detach(), counts, torch.zeros(4).long(), 1.0, 3).exp().tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    )


def test_of_fewer_references_than_neighbours_all_count() -> None:
    s, counts = torch.rand(2, 6), torch.tensor([[True, True, False, False, False, False]] * 2)
    assert torch.equal(nearest(s, counts, 4), counts)
    assert nearest(s, torch.ones(2, 6, dtype=torch.bool), 9).all()

"""Costs by the formula, selections by trying all."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from transfer_run.errors import UserError
from transfer_run.methods.compression.units.selection import Costs, select


def test_the_costs_of_bert_base() -> None:
    """Check 6 of the method's sheet."""
    s, d, e = 39.05, 768, 64
    found = Costs.of(s, d, e, 12, 12, 3072)
    assert found.head == pytest.approx(3 * s * d * e + 2 * s * s * e + s * e * d)
    assert found.neuron == pytest.approx(2 * s * d)
    assert found.base == pytest.approx(12 * (12 * found.head + 3072 * found.neuron))


def test_no_subset_is_better_where_units_cost_the_same() -> None:
    costs = Costs(1.0, 1.0, 7.0)
    for _ in range(20):
        heads, neurons = torch.rand(1, 3), torch.rand(1, 4)
        scores = torch.cat([heads[0], neurons[0]])
        for room in range(1, 8):
            best = max(
                float((scores * torch.tensor(pick)).sum())
                for pick in product((0.0, 1.0), repeat=7)
                if sum(pick) <= room and sum(pick[:3]) >= 1
            )
            kept_heads, kept_neurons, objective = select(heads, neurons, costs, room / 7)
            assert objective == pytest.approx(best, rel=1e-6)
            assert costs.kept(kept_heads, kept_neurons) <= room


def test_a_budget_of_one_keeps_everything_and_none_is_exceeded() -> None:
    costs = Costs.of(7, 16, 4, 3, 4, 12)
    heads, neurons = torch.rand(3, 4) * 100, torch.rand(3, 12)  # heads count for more than all neurons
    kept_heads, kept_neurons, _ = select(heads, neurons, costs, 1.0)
    assert kept_heads.all()
    assert kept_neurons.all()
    earlier: dict[int, torch.Tensor] = {}
    for budget in torch.linspace(0.1, 1, 19).tolist():
        kept_heads, kept_neurons, _ = select(heads, neurons, costs, budget)
        assert costs.kept(kept_heads, kept_neurons) <= budget * costs.base * (1 + 1e-9)
        count = int(kept_heads.sum())
        if count in earlier:
            assert not (earlier[count] & ~kept_neurons).any(), "neurons are nested in the budget"
        earlier[count] = kept_neurons


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="not even for one attention head"):
        select(torch.rand(3, 4), torch.rand(3, 12), Costs.of(7, 16, 4, 3, 4, 12), 0.01)

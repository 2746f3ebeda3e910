"""OPTIN's terms, costs and selections against numbers of the paper's own functions."""

from __future__ import annotations

import torch
from torch import Tensor

from transfer_run.methods.compression.units.selection import Costs, select
from transfer_run.methods.compression.units.terms import divergence, gram, index_factors, trajectory

ORACLE = "optin_*.npz"

Tensors = dict[str, Tensor]


def test_the_trajectory_term(tensors: Tensors) -> None:
    dense, masked = gram(tensors["teacher_feat"]), gram(tensors["student_feat"])
    torch.testing.assert_close(trajectory(dense, masked), -tensors["md__sum"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trajectory(dense, masked, "mean"), -tensors["md__mean"], atol=1e-6, rtol=1e-5)


def test_the_term_of_the_logits_is_not_divided_by_the_temperature(tensors: Tensors) -> None:
    for name in (name for name in tensors if name.startswith("kl__temp")):
        found = divergence(tensors["teacher_logits"], tensors["student_logits"], float(name.removeprefix("kl__temp")))
        torch.testing.assert_close(found, -tensors[name], atol=1e-5, rtol=1e-5)


def test_the_released_factors(tensors: Tensors) -> None:
    for kind, start in (("head", 10.0), ("neuron", 100.0)):
        wanted = tensors[f"{kind}_factor"]
        torch.testing.assert_close(index_factors(len(wanted), start), wanted, atol=1e-9, rtol=1e-9)


def costs(tensors: Tensors) -> Costs:
    length, width, head, layers, heads, neurons = tensors["mac_sizes"].tolist()
    return Costs.of(length, int(width), int(head), int(layers), int(heads), int(neurons))


def test_the_costs(tensors: Tensors) -> None:
    found = costs(tensors)
    assert [found.head, found.neuron, found.base] == [float(tensors[f"mac_{n}"]) for n in ("head", "neuron", "base")]


def test_the_selections(tensors: Tensors) -> None:
    budgets = [
        name.removeprefix("constraint").removesuffix("__head_mask") for name in tensors if name.endswith("__head_mask")
    ]
    assert budgets
    for budget in budgets:
        heads, neurons, _ = select(tensors["head_score"], tensors["neuron_score"], costs(tensors), float(budget))
        assert torch.equal(heads.to(torch.float32), tensors[f"constraint{budget}__head_mask"])
        assert torch.equal(neurons.to(torch.float32), tensors[f"constraint{budget}__neuron_mask"])

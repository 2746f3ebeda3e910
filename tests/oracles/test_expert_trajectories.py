"""Trajectory matching and the experts' loss against numbers of the reference's formulas."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.methods.data_selection.trajectories.experts import gradient_penalty
from transfer_run.methods.data_selection.trajectories.matching import (
    Goal,
    Step,
    Student,
    balance,
    goals,
    stepwise,
    whole,
)

ORACLE = "dataset_distillation_*.npz"
RATE, MOMENTUM, PENALTY = 0.05, 0.9, 2.0
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
BALANCE = re.compile(r"ast_balance_start(\d+)_max(\d+)")


def network(theta: Tensor, x: Tensor) -> Tensor:
    """W2 tanh(W1 x + b1) + b2; the hidden width follows from the number of weights."""
    inputs = x.shape[1]
    classes = next(c for c in range(CLASSES, len(theta)) if (len(theta) - c) % (inputs + 1 + c) == 0)
    hidden = (len(theta) - classes) // (inputs + 1 + classes)
    w1, b1, w2, b2 = theta.split([hidden * inputs, hidden, classes * hidden, classes])
    return torch.tanh(x @ w1.view(hidden, inputs).T + b1) @ w2.view(classes, hidden).T + b2


CLASSES = 0


@pytest.mark.parametrize("way", [whole, stepwise])
@pytest.mark.parametrize("prefix", ["mtt", "mtt_mom", "ast"])
def test_losses_gradients_and_the_way(tensors: dict[str, Tensor], prefix: str, way, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    labels = tensors["mtt_y_syn"].long()
    monkeypatch.setattr(f"{__name__}.CLASSES", int(labels.max()) + 1)
    steps, middle = len(tensors[f"{prefix}_trajectory"]), len(tensors[f"{prefix}_mid_terms"])
    name = next(name for name in tensors if BALANCE.fullmatch(name))
    factor = balance(*map(int, BALANCE.fullmatch(name).groups())) if prefix == "ast" else 1.0  # type: ignore[union-attr]
    student = Student(network, labels, [Step()] * steps, 0.0 if prefix == "mtt" else MOMENTUM, factor)
    epochs = [tensors[f"mtt_theta_mid{number + 1}"] for number in range(middle)] + [tensors["mtt_theta_target"]]
    aims: list[Goal] = goals(torch.stack(epochs), steps, "sum")
    images = tensors["mtt_x_syn"].clone().requires_grad_()
    rate = torch.tensor(RATE, dtype=images.dtype).requires_grad_()
    start = tensors["mtt_theta_start"]
    found = way(student, images, rate, start, aims)
    torch.testing.assert_close(found.loss, tensors[f"{prefix}_loss"].reshape(()), **CLOSE)
    torch.testing.assert_close(found.terms[-1], tensors[f"{prefix}_final_term"].reshape(()), **CLOSE)
    for term, expected in zip(found.terms[:-1], tensors[f"{prefix}_mid_terms"], strict=True):
        torch.testing.assert_close(term, expected, **CLOSE)
    torch.testing.assert_close(found.images, tensors[f"{prefix}_grad_x"], **CLOSE)
    torch.testing.assert_close(found.rate, tensors[f"{prefix}_grad_lr"].reshape(()), **CLOSE)
    state = student.begin(start)
    for number, expected in enumerate(tensors[f"{prefix}_trajectory"]):
        state = student.advance(state, number, images.detach(), rate.detach(), graph=False)
        torch.testing.assert_close(state[0].detach(), expected, **CLOSE)


def test_balance_factors(tensors: dict[str, Tensor]) -> None:
    given = {name: float(value) for name, value in tensors.items() if BALANCE.fullmatch(name)}
    assert given
    for name, value in given.items():
        start, most = map(int, BALANCE.fullmatch(name).groups())  # type: ignore[union-attr]
        assert math.isclose(balance(start, most), value, rel_tol=1e-12)


def test_the_experts_loss(tensors: dict[str, Tensor]) -> None:
    first, second, labels = tensors["gp_A"], tensors["gp_B"], tensors["gp_labels"].long()

    def logits(images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ first) @ second

    entropy = F.cross_entropy(logits(tensors["gp_images"]), labels)
    penalty = gradient_penalty(logits, tensors["gp_images"], PENALTY)
    assert np.isclose(float(entropy), float(tensors["gp_ce"]), rtol=1e-10)
    assert np.isclose(float(penalty), float(tensors["gp_term_channel"]), rtol=1e-10)
    assert np.isclose(float(0.5 * entropy + penalty), float(tensors["gp_expert_loss_factor05"]), rtol=1e-10)

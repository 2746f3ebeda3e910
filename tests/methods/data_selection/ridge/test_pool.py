"""Check 8 of the method's spec; a student's step; modes and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests import small
from transfer_run.methods.base import Method
from transfer_run.methods.data_selection.ridge.pool import Pool, answers, regress
from transfer_run.methods.work import Work
from transfer_run.task import Task

SETTINGS: dict[str, Any] = {
    "size": 2, "max_steps": 3, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "keep_counter_bug": False,
}  # fmt: skip


def student(seed: int) -> Method:
    backbone = small.backbone("chain", seed=seed)
    return Method(backbone, Task("classification", 3), head=nn.Linear(backbone.feature_width, 4)).requires_grad_(True)


def pool(**words: Any) -> Pool:
    return Pool(nn.ModuleList([student(1), student(2)]), SETTINGS | words)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    image = small.CONFIGS["chain"]["image"]
    return torch.randn(6, image["channels"], image["size"], image["size"]), torch.randn(6, 4)


@pytest.mark.parametrize("bug", [False, True])
def test_a_counter_passes_zero_again_unless_the_bug_is_kept(bug: bool) -> None:
    made, (images, targets) = pool(keep_counter_bug=bug), pairs()
    seen = []
    for _ in range(8):
        made.visit(0, images, targets)
        seen.append(int(made.counters[0]))
    assert seen == ([1, 2, 3, 3, 3, 3, 3, 3] if bug else [1, 2, 3, 0, 1, 2, 3, 0])
    assert int(made.counters[1]) == 0


def test_a_student_that_begins_anew_is_not_trained_in_the_same_visit() -> None:
    made, (images, targets) = pool(), pairs()
    for _ in range(3):
        made.visit(0, images, targets)
    trained = {name: each.clone() for name, each in made.student(0).state_dict().items()}
    made.visit(0, images, targets)
    fresh = made.student(0).state_dict()
    assert any(not torch.equal(each, trained[name]) for name, each in fresh.items())
    assert not made.optimizers[0].state
    other = pool()
    other.counters[0] = 3
    before = {name: each.clone() for name, each in other.student(1).state_dict().items()}
    other.visit(0, images, targets)
    assert all(torch.equal(each, before[name]) for name, each in other.student(1).state_dict().items())


def test_a_step_is_one_of_sgd_on_the_whole_batch_and_leaves_the_pairs_alone() -> None:
    made, (images, targets) = student(1), pairs()
    images.requires_grad_()
    targets.requires_grad_()
    loss = (answers(made, images) - targets).square().mean()
    gradients = torch.autograd.grad(loss, list(made.parameters()))
    before = [each.detach().clone() for each in made.parameters()]
    found = regress(made, torch.optim.SGD(made.parameters(), 0.1), images, targets)
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-6)
    for parameter, old, gradient in zip(made.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * gradient)
    assert images.grad is None
    assert targets.grad is None
    assert made.training


def test_the_first_steps_are_as_many_as_each_student_is_given() -> None:
    made, (images, targets) = pool(), pairs()
    alone = copy.deepcopy(made.student(1))
    optimizer = torch.optim.SGD(alone.parameters(), 0.05, 0.9, weight_decay=1e-3)
    made.warm([2, 1], images, targets, Work())
    assert made.counters.tolist() == [2, 1]
    regress(alone, optimizer, images, targets)
    for mine, other in zip(made.student(1).parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, other)

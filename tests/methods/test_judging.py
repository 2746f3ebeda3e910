"""What a finished run ships is said by one word, and methods that judge share the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import small
from transfer_run.methods.base import Context, Method
from transfer_run.methods.judging import Judging
from transfer_run.task import Task


class Gained(Method):
    """A trained factor on a frozen backbone, with a teacher held beside it."""

    def __init__(self, ships: str = "trained") -> None:
        super().__init__(small.backbone("cnn"), small.task("cnn"))
        self.freeze_backbone()
        self.gain = nn.Parameter(torch.ones(1))
        self.hold("teacher", nn.BatchNorm1d(3))
        type(self).ships = ships  # type: ignore[assignment]


def names(tensors: dict[str, Tensor]) -> set[str]:
    return set(tensors)


def test_what_is_trained_ships_with_all_buffers() -> None:
    method = Gained()
    buffers = {name for name, _ in method.backbone.named_buffers()}
    assert buffers
    trained = {"gain", "backbone.head.weight", "backbone.head.bias"}
    assert names(method.shipped()) == trained | {f"backbone.{name}" for name in buffers}


def test_all_ships_but_what_is_held() -> None:
    method = Gained("all")
    state = {name for name in method.state_dict() if not name.startswith("teacher.")}
    assert names(method.shipped()) == state
    assert any(name.startswith("teacher.") for name in method.state_dict())


def test_nothing_ships() -> None:
    assert Gained("nothing").shipped() == {}


def test_the_whole_backbone_is_trained_but_what_the_task_does_not_run() -> None:
    method = Method(small.backbone("t5"), small.task("t5", "classification"))
    method.train_backbone()
    idle = {id(p) for p in method.idle_parameters()}
    assert idle
    assert {id(p) for p in method.parameters() if not p.requires_grad} == idle


class Counts(Judging):
    def prepare(self, context: Context) -> None:
        self.results = {"rows": context.sizes["train"]}


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_method_that_judges_looks_and_leaves_no_model(name: str) -> None:
    task: Task = small.task(name)
    method = Counts(small.backbone(name), task)
    assert not method.trains
    assert not method.tests
    assert not any(p.requires_grad for p in method.parameters())
    assert not method.train().backbone.model.training
    assert method.predict(small.batch(name)).shape[1] == method.backbone.feature_width
    context = Context(0, Path(), lambda split, size: iter(()), sizes={"train": 7})
    method.prepare(context)
    assert method.conclude(context) == {"rows": 7}
    assert method.shipped() == {}

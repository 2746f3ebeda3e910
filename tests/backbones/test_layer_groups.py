"""Stages that can be copied, frozen and re-initialised one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.layer_groups import copy_stages, freeze_stages, reinitialize, stages
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.methods.forms.classification import Classification
from transfer_run.task import Task

TASK = Task("classification", 5)
SOME = pytest.mark.parametrize("name", ["t5", "bert", "bart", "llama", "vit", "resnet", "efficientnet", "clip"])


def outputs(case: Any) -> Tensor:
    backbone: Backbone = case.backbone
    state = backbone.run(case.embed(backbone.stacks[0]))
    return backbone.pool(backbone.finish(state), state)


def test_stages_share_out_every_tensor_once(case: Any) -> None:
    backbone: Backbone = case.backbone
    backbone.head = Classification().head(backbone, TASK)
    found = stages(backbone)
    names = [name for stage in found.values() for name in stage]
    assert sorted(names) == sorted(backbone.state_dict())
    expected = ["embedding"]
    for stack in backbone.stacks:
        expected += [f"{stack}.{index}" for index in range(backbone.depth(stack))]
        expected += [f"{stack}.finish"] if backbone.finish_modules(stack) else []
    assert list(found) == [*expected, "head"]


@SOME
def test_all_stages_copied_is_the_source(
    build: Callable[..., Any], config_of: Callable[[str], dict[str, Any]], name: str
) -> None:
    source, target = build(name), build(name)
    target.backbone = build_backbone(config_of(name) | {"weights": "random:7"}).eval()
    assert not torch.allclose(outputs(source), outputs(target))
    copy_stages(target.backbone, source.backbone, stages(target.backbone))
    torch.testing.assert_close(outputs(target), outputs(source), atol=0, rtol=0)


@SOME
def test_a_cut_copies_below_and_starts_anew_above(
    build: Callable[..., Any], config_of: Callable[[str], dict[str, Any]], name: str
) -> None:
    """Above the cut every stage is bit for bit that of a new model of the same seed, below it is the source's."""
    backbone: Backbone = build(name).backbone
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    fresh = build_backbone(config_of(name) | {"weights": "random:7"}).state_dict()
    order = [stage for stage in stages(backbone) if stage != "head"]
    below, above = order[: len(order) // 2], order[len(order) // 2 :]
    reinitialize(backbone, above, seed=7)
    found = stages(backbone)
    for stage, expected in [(stage, before) for stage in below] + [(stage, fresh) for stage in above]:
        for key in found[stage]:
            assert torch.equal(backbone.state_dict()[key], expected[key]), key


@pytest.mark.parametrize("name", ["vit", "bart"])
def test_a_new_head_starts_anew(build: Callable[..., Any], name: str) -> None:
    def weights() -> Tensor:
        return torch.cat([tensor.flatten() for tensor in backbone.head.state_dict().values()])

    backbone: Backbone = build(name).backbone
    backbone.head = Classification().head(backbone, TASK)
    before = weights()
    rest = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    reinitialize(backbone, ["head"], seed=3)
    first = weights()
    reinitialize(backbone, ["head"], seed=3)
    assert torch.equal(weights(), first)
    assert not torch.equal(first, before)
    assert all(torch.equal(value, rest[key]) for key, value in backbone.model.state_dict().items())


@SOME
def test_frozen_stages_do_not_move(build: Callable[..., Any], name: str) -> None:
    """Three steps in train mode: frozen weights and batch statistics stay bit for bit, the others learn."""
    case = build(name)
    backbone: Backbone = case.backbone
    backbone.head = Classification().head(backbone, TASK)
    order = list(stages(backbone))
    frozen = order[:2]
    freeze_stages(backbone, frozen)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone.head(outputs(case)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    after, found = backbone.state_dict(), stages(backbone)
    assert all(torch.equal(after[key], before[key]) for stage in frozen for key in found[stage])
    assert any(not torch.equal(after[key], before[key]) for key in found["head"])
    moving = [key for key in after if key.endswith("running_mean") and not torch.equal(after[key], before[key])]
    assert bool(moving) == (backbone.family == "cnn")


def test_an_unknown_stage_is_named(build: Callable[..., Any]) -> None:
    with pytest.raises(UserError) as error:
        freeze_stages(build("vit").backbone, ["image.9"])
    assert error.value.nearest[0].startswith("image.")


def test_a_new_head_follows_the_backbones_own_rule(build: Callable[..., Any]) -> None:
    """A chain's linear head is drawn as its words say, another one's linear head as PyTorch draws it."""
    chain: Backbone = build("chain").backbone
    chain.config["architecture"]["head"] = {"std": 3.0, "bias": 2}
    chain.head = torch.nn.Linear(chain.feature_width, 200)
    reinitialize(chain, ["head"], seed=5)
    assert float(chain.head.weight.detach().std()) == pytest.approx(3.0, rel=0.05)
    assert bool((chain.head.bias == 2).all())
    bert: Backbone = build("bart").backbone  # whose own head has two layers
    bert.head = torch.nn.Linear(bert.feature_width, 5)
    before = bert.head.weight.detach().clone()
    reinitialize(bert, ["head"], seed=5)
    assert not torch.equal(bert.head.weight, before)

"""Where tuning methods act: names of parts, fused projections, chosen blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.inside.targets import find_targets, norms, project

Build = Callable[..., Backbone]


def test_q_means_all_queries_of_an_encoder_decoder(build: Build) -> None:
    found = find_targets(build("t5"), ("q", "v"))
    assert [p.part for p in found if p.stack == "encoder"] == ["q", "v"] * 3
    assert [p.part for p in found if p.stack == "decoder"] == ["q", "v", "cross_q", "cross_v"] * 2
    assert len(find_targets(build("t5"), ("q", "v"), cross_attention=False)) == 10


def test_layers_choose_blocks_stack_by_stack(build: Build) -> None:
    found = find_targets(build("t5"), ("mlp_out",), layers={"encoder": [2]})
    assert [(p.stack, p.index) for p in found] == [("encoder", 2), ("decoder", 0), ("decoder", 1)]
    assert not [p for p in find_targets(build("t5"), ("q",), layers={"encoder": []}) if p.stack == "encoder"]
    alone = find_targets(build("t5"), ("mlp_out",), layers={"encoder": [], "decoder": None})
    assert [(p.stack, p.index) for p in alone] == [("decoder", 0), ("decoder", 1)]


@pytest.mark.parametrize("key", ["vit", "gpt2", "bert"])
def test_a_third_of_a_fused_projection_is_that_projection(key: str, build: Build) -> None:
    backbone = build(key)
    for target in find_targets(backbone, ("q", "k", "v")):
        x = torch.randn(2, 5, 32)
        expected = backbone.project(target.stack, target.index, target.part, x)
        torch.testing.assert_close(project(backbone.get_submodule(target.path), target, x), expected)


def test_wrong_names_are_answered_with_near_ones(build: Build) -> None:
    with pytest.raises(UserError, match="no part 'mlp_ot'") as error:
        find_targets(build("bert"), ("mlp_ot",))
    assert "mlp_out" in error.value.nearest
    with pytest.raises(UserError, match="have no part 'mlp_gate'"):
        find_targets(build("bert"), ("mlp_gate",))
    with pytest.raises(UserError, match="no stack 'encodr'") as error:
        find_targets(build("t5"), ("q",), layers={"encodr": [0]})
    assert error.value.nearest[0] == "encoder"
    for wrong in (1, "all", ["1"]):
        with pytest.raises(UserError, match="list of numbers"):
            find_targets(build("t5"), ("q",), layers={"encoder": wrong})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="no block 7"):
        find_targets(build("t5"), ("q",), layers={"encoder": [7]})


def test_norms_are_found_in_every_library(build: Build) -> None:
    assert len(list(norms(build("bert").model))) == 1 + 2 * 3
    assert len(list(norms(build("t5").model))) == 2 * 3 + 1 + 3 * 2 + 1
    assert len(list(norms(build("llama").model))) == 2 * 3 + 1

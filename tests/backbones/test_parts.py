"""A block's parts under the same names in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from transfer_run.backbones.base import PARTS, Backbone
from transfer_run.errors import UserError

SELF_ATTENTION = {"attention", "norm1", "out", "norm2", "mlp_in", "mlp_out"}


def test_names_are_canonical_and_lead_to_modules(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    for stack in backbone.stacks:
        for index in range(backbone.depth(stack)):
            names = backbone.parts(stack, index)
            assert set(names) <= set(PARTS)
            assert set(names) >= SELF_ATTENTION
            assert ("qkv" in names) != {"q", "k", "v"}.issubset(names)
            block = backbone.blocks(stack)[index]
            inside = {id(module) for module in block.modules()}
            assert all(id(backbone.part(stack, index, name)) in inside for name in names)


def test_parts_have_the_right_sizes(attention_case: Any) -> None:
    """Projections read the width and write heads times head width; the norms are as wide as the block."""
    backbone: Backbone = attention_case.backbone
    for stack in backbone.stacks:
        width = backbone.width(stack)
        hidden = torch.randn(2, 5, width, dtype=torch.float64)
        for name in ("norm1", "norm2"):
            assert backbone.part(stack, 0, name)(hidden).shape == hidden.shape
        q, k, v = (backbone.project(stack, 0, name, hidden) for name in "qkv")
        assert k.shape == v.shape
        assert q.shape[-1] % backbone.heads(stack) == 0
        assert backbone.part(stack, 0, "out")(q).shape == hidden.shape
        inner = backbone.part(stack, 0, "mlp_in")(hidden)
        assert backbone.part(stack, 0, "mlp_out")(inner).shape == hidden.shape


@pytest.mark.parametrize("name", ["gpt2", "vit", "vit_average"])
def test_a_fused_projection_is_cut_in_three(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    backbone, stack = case.backbone, case.backbone.stacks[0]
    hidden = torch.randn(2, 5, backbone.width(stack))
    fused = backbone.part(stack, 1, "qkv")(hidden).chunk(3, -1)
    for part, expected in zip("qkv", fused, strict=True):
        torch.testing.assert_close(backbone.project(stack, 1, part, hidden), expected)


def test_a_wrapped_projection_runs_as_a_whole(build: Callable[..., Any]) -> None:
    """What a method puts around the fused projection is part of what `project` returns."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    backbone: Backbone = build("vit").backbone
    hidden = torch.randn(2, 5, 32)
    plain = backbone.project("image", 0, "k", hidden)
    path = backbone.parts("image", 0)["qkv"]
    backbone.set_submodule(path, Doubled(backbone.get_submodule(path)))
    torch.testing.assert_close(backbone.project("image", 0, "k", hidden), 2 * plain)


def test_norms_stand_where_pre_norm_says(attention_case: Any) -> None:
    """Pre-norm: the block is the identity where `out` and `mlp_out` are zero. Post-norm: it normalises even then."""
    backbone: Backbone = attention_case.backbone
    stack = backbone.stacks[0]
    for name in ("out", "mlp_out"):
        for parameter in backbone.part(stack, 0, name).parameters():
            nn.init.zeros_(parameter)
    state = attention_case.embed(stack)
    same = torch.allclose(backbone.step(state).hidden, state.hidden, atol=1e-9)
    norm = backbone.part(stack, 0, "norm1")
    if backbone.pre_norm:
        assert same
    else:
        expected = backbone.part(stack, 0, "norm2")(norm(state.hidden))
        torch.testing.assert_close(backbone.step(state).hidden, expected)


def test_final_norm_is_what_finish_applies(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    for stack in backbone.stacks:
        norm = backbone.final_norm(stack)
        if norm is None or attention_case.name == "vit_average":  # it averages first
            continue
        state = backbone.run(attention_case.embed(stack))
        torch.testing.assert_close(backbone.finish(state), norm(state.hidden))


def test_a_part_that_is_not_there_is_refused(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    with pytest.raises(UserError, match="have no part 'norm3'") as error:
        backbone.part(backbone.stacks[0], 0, "norm3")
    assert "norm2" in error.value.remedy

"""A masked head or neuron is one whose weights into the next layer are zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.masks import mask_heads, mask_neurons


def columns(layer: nn.Module) -> Tensor:
    """A view of the weight whose rows are the layer's inputs; transformers' Conv1D keeps it so."""
    weight = layer.get_parameter("weight")
    return weight if type(layer).__name__ == "Conv1D" else weight.T


@torch.no_grad()
def test_masking_is_zeroing_by_hand(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    for stack in backbone.stacks:
        state, heads = attention_case.embed(stack), backbone.heads(stack)
        plain = backbone.step(state).hidden
        width = len(columns(backbone.part(stack, 0, "out"))) // heads
        neurons = torch.arange(len(columns(backbone.part(stack, 0, "mlp_out")))) % 3 != 0
        places = (("out", torch.arange(heads) != 1, mask_heads), ("mlp_out", neurons, mask_neurons))
        for place, mask, masked in places:
            handle = masked(backbone, stack, 0, mask)
            found = backbone.step(state).hidden
            handle.remove()
            into = columns(backbone.part(stack, 0, place))
            kept = into.clone()
            into[~mask.repeat_interleave(width if place == "out" else 1)] = 0
            by_hand = backbone.step(state).hidden
            into.copy_(kept)
            torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-12)
            assert not torch.allclose(found, plain)
        assert torch.equal(backbone.step(state).hidden, plain), "nothing is left behind"


def test_a_masks_gradient_is_what_leaving_out_changes_at_first(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    backbone.requires_grad_(False)
    stack = backbone.stacks[0]
    state, mask = (
        attention_case.embed(stack),
        torch.ones(backbone.heads(stack), dtype=torch.float64, requires_grad=True),
    )
    handle = mask_heads(backbone, stack, 0, mask)
    probe = torch.randn(backbone.step(state).hidden.shape, dtype=torch.float64)
    (backbone.step(state).hidden * probe).sum().backward()
    assert mask.grad is not None
    handle.remove()
    sums = []
    for step in (1e-3, -1e-3):  # some norms compute in float32
        handle = mask_heads(backbone, stack, 0, mask.detach() + step * torch.eye(len(mask), dtype=torch.float64)[0])
        sums.append((backbone.step(state).hidden * probe).sum())
        handle.remove()
    assert float((sums[0] - sums[1]) / 2e-3) == pytest.approx(float(mask.grad[0]), rel=0.02, abs=1e-3)


def test_a_mask_of_another_size_is_refused(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    stack = backbone.stacks[0]
    with pytest.raises(ValueError, match="heads has the shape"):
        mask_heads(backbone, stack, 0, torch.ones(3))
    handle = mask_neurons(backbone, stack, 0, torch.ones(1))
    with pytest.raises(ValueError, match="neurons has the shape"):
        backbone.step(attention_case.embed(stack))
    handle.remove()

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
    """To first order: what enters the next layer, times the loss's gradient there, summed over a head."""
    backbone: Backbone = attention_case.backbone
    backbone.requires_grad_(False)
    stack = backbone.stacks[0]
    state, heads = attention_case.embed(stack), backbone.heads(stack)
    probe = torch.randn(state.hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    entering: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entering.append(inputs[0].detach().requires_grad_())
        return (entering[0], *inputs[1:])

    watcher = backbone.part(stack, 0, "out").register_forward_pre_hook(watch)
    (backbone.step(state).hidden * probe).sum().backward()
    watcher.remove()
    assert entering[0].grad is not None
    by_hand = (entering[0] * entering[0].grad).unflatten(-1, (heads, -1)).sum((*range(entering[0].dim() - 1), -1))

    mask = torch.ones(heads, dtype=torch.float64, requires_grad=True)
    handle = mask_heads(backbone, stack, 0, mask)
    (backbone.step(state).hidden * probe).sum().backward()
    handle.remove()
    torch.testing.assert_close(mask.grad, by_hand.detach(), rtol=1e-10, atol=1e-10)
    assert by_hand.abs().min() > 1e-6


def test_a_mask_of_another_size_is_refused(attention_case: Any) -> None:
    backbone: Backbone = attention_case.backbone
    stack = backbone.stacks[0]
    with pytest.raises(ValueError, match="heads has the shape"):
        mask_heads(backbone, stack, 0, torch.ones(3))
    handle = mask_neurons(backbone, stack, 0, torch.ones(1))
    with pytest.raises(ValueError, match="neurons has the shape"):
        backbone.step(attention_case.embed(stack))
    handle.remove()

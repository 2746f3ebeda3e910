"""Res-Tuning-Bypass: the recursion on every family, no gradient in the backbone."""

from __future__ import annotations

import pytest
import torch

from tests.methods.side_tuning.models import backbone, batch, gradients, task
from transfer_run.methods.side_tuning.res_tuning_bypass import ResTuningBypass, Tuner


def stirred(name: str) -> ResTuningBypass:
    model = backbone(name)
    method = ResTuningBypass(model, task(model), tuner_width=4).eval()
    with torch.no_grad():
        for parameter in method.ladders.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return method


def tuned(tuner: Tuner, x: torch.Tensor) -> torch.Tensor:
    """x + W_up gelu(W_down x + b_down) + b_up, from the weights alone."""
    inner = x @ tuner.down.weight.T + tuner.down.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return x + inner @ tuner.up.weight.T + tuner.up.bias


@pytest.mark.parametrize(("name", "stack"), [("vit", "image"), ("llama", "decoder"), ("bert", "encoder")])
def test_the_equations(name: str, stack: str) -> None:
    """b_l = g T'(b_{l-1}) + (1 - g) T(h_l), b_0 = h_0; the backbone's own finish and head read b_L."""
    method = stirred(name)
    model, given, ladder = method.backbone, batch(method.backbone), method.ladders[stack]
    with torch.no_grad():
        state = model.embed(given)
        bypass = state.hidden
        for index in range(model.depth(stack)):
            state = model.step(state)
            gate = torch.sigmoid(ladder.mix.alpha[index])
            ours, theirs = ladder.steps.tuners[index], ladder.maps[str(index)]
            bypass = gate * tuned(ours, bypass) + (1 - gate) * tuned(theirs, state.hidden)
        last = model.finish(state.with_hidden(bypass))
        expected = model.language_logits(last) if name == "llama" else model.head(model.pool(last, state))
        torch.testing.assert_close(method(given), expected)


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2"])
def test_gradients_stay_outside_the_backbone(name: str) -> None:
    method = stirred(name)
    seen: list[bool] = []
    for block in method.backbone.blocks(method.last_stack):
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    found = gradients(method, batch(method.backbone))
    assert seen
    assert not any(seen)
    assert set(found) == {n for n, p in method.named_parameters() if p.requires_grad}

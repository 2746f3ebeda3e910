"""Blocks on a line: what they compute, where gradients go, what is kept for backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import small
from tests.methods.initialization.models import batch, learned, vit, weights_of
from transfer_run.errors import UserError
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.initialization.line.blocks import Line
from transfer_run.methods.initialization.tleg import Tleg
from transfer_run.methods.tuning.full import Full


def untied(method: Tleg) -> Full:
    """An ordinary network with the weights that the line gives each block."""
    plain = Full(vit(method.line.depth), method.task)
    method.line.write(plain.backbone.blocks("image"))
    outside = {name: tensor for name, tensor in method.state_dict().items() if name.startswith("backbone.")}
    plain.load_state_dict(outside, strict=False)
    return plain


def gradients(method: Full | Tleg, data: dict[str, Tensor]) -> dict[str, Tensor]:
    method.zero_grad()
    method.task_loss(method(data), data["labels"]).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["efficient", "official"])
def test_it_computes_what_untied_blocks_do_and_sums_their_gradients(recompute: str) -> None:
    """Checks 1 and 4: dB is the sum, dA the sum weighted by l / L."""
    method, data = learned(memory_mode=recompute), batch()
    plain = untied(method)
    torch.testing.assert_close(method(data), plain(data), atol=1e-5, rtol=0)
    found, each = gradients(method, data), gradients(plain, data)
    for name in method.line.names:
        layers = torch.stack([each[f"backbone.model.blocks.{number}.{name}"] for number in range(4)])
        place = (torch.arange(4) / 4).view(-1, *[1] * (layers.ndim - 1))
        torch.testing.assert_close(found[f"line.base.{name}"], layers.sum(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[f"line.slope.{name}"], (place * layers).sum(0), atol=1e-5, rtol=1e-4)
    assert torch.allclose(found["backbone.head.weight"], each["backbone.head.weight"], atol=1e-5)


def test_both_memory_modes_have_equal_gradients() -> None:
    data = batch()
    lean, whole = (gradients(learned(memory_mode=mode), data) for mode in ("efficient", "official"))
    assert lean.keys() == whole.keys()
    assert all(torch.equal(lean[name], whole[name]) for name in lean)


@pytest.mark.parametrize("autocast", [False, True])
def test_backward_keeps_no_weights_of_blocks(autocast: bool) -> None:
    """What is alive between forward and backward grows with depth by activations alone: the same as of frozen blocks
    whose weights lie there anyway. `official` keeps a block's weights for each of them."""

    def alive(depth: int, mode: str) -> int:
        method, data = learned(depth, memory_mode=mode), batch(2)
        with MemoryTracker() as tracker:
            tracker.mark("forward")
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = method(data).float().sum()
            kept = tracker.current
            del loss
        return kept

    block = sum(p.numel() * (2 if autocast else 4) for p in learned(2).line.base.parameters() if p.ndim > 1)
    lean, whole = (alive(6, mode) - alive(3, mode) for mode in ("efficient", "official"))
    assert whole - lean >= 3 * block
    assert whole - lean <= 3.3 * block


def test_activation_checkpointing_forms_weights_again() -> None:
    method, data = learned(), batch()
    expected = gradients(method, data)
    method.backbone.activation_checkpointing = True
    found = gradients(method.train(), data)
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)


def test_blocks_are_left_as_they_were_even_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    method = learned()
    method(batch())
    assert not list(method.backbone.blocks("image")[1].parameters())
    assert "weight" not in vars(method.backbone.get_submodule("model.blocks.1.attn.qkv"))

    def fails(*args: Any) -> Tensor:
        raise RuntimeError("in a block")

    broken = method.backbone.get_submodule("model.blocks.1.mlp")
    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", fails)
        with pytest.raises(RuntimeError, match="in a block"):
            method(batch())
    assert "weight" not in vars(method.backbone.get_submodule("model.blocks.1.attn.qkv"))
    assert not method.line._open
    assert gradients(method, batch())


def test_a_copy_has_a_line_of_its_own() -> None:
    method, data = learned(), batch()
    before, twin = method(data), copy.deepcopy(method)
    assert torch.equal(twin(data), before)
    with torch.no_grad():
        twin.line.base.get_parameter("mlp.fc1.weight").mul_(2)
    assert torch.equal(method(data), before)
    assert not torch.equal(twin(data), before)


def test_no_slope_is_one_block_for_all() -> None:
    method = learned()
    nn.init.zeros_(method.line.slope.get_parameter("attn.qkv.weight"))
    with torch.no_grad():
        for parameter in method.line.slope.parameters():
            parameter.zero_()
    plain = Full(vit(5), method.task)
    method.line.write(plain.backbone.blocks("image"))
    blocks = weights_of(plain)
    assert all(torch.equal(each[name], blocks[0][name]) for each in blocks for name in blocks[0])


def test_the_beginning_is_the_released_one() -> None:
    method = Tleg(vit(3), learned().task)
    for name in method.line.names:
        base, slope = method.line.base.get_parameter(name), method.line.slope.get_parameter(name)
        if base.ndim > 1:
            assert 0.015 < float(base.detach().std()) < 0.025
            assert 0.015 < float(slope.detach().std()) < 0.025
        else:
            assert (base == (1.0 if name.startswith("norm") and name.endswith("weight") else 0.0)).all()
            assert (slope == 0).all()


def test_unlike_blocks_are_refused() -> None:
    blocks = [nn.Linear(4, 4), nn.Linear(4, 5)]
    with pytest.raises(UserError, match="not alike"):
        Line(blocks)
    with pytest.raises(UserError, match="not alike"):
        Line(small.backbone("t5").blocks("encoder"))  # the first one holds the position bias of all
    with pytest.raises(UserError, match="not alike"):
        Line([])

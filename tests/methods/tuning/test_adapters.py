"""Sequential and parallel adapters: where they stand, when they are the identity, what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.bottleneck import Bottleneck
from transfer_run.methods.tuning.adapter import Adapter
from transfer_run.methods.tuning.mam_adapter import MAMAdapter
from transfer_run.methods.tuning.parallel_adapter import ParallelAdapter, multihead_change

Make = Callable[..., Any]
KEYS = ["t5", "bert", "gpt2", "llama", "vit", "clip"]
SMALL: dict[str, Any] = {"bottleneck": 6, "dropout": 0.0}


def randomise(method: nn.Module, seed: int = 3) -> None:
    """Give everything that is trained, the head apart, weights that matter."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if parameter.requires_grad and "head" not in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=random)


def plain(method: Method, key: str, build: Make, task: Make) -> Method:
    other = Method(build(key), task(key)).eval()
    other.backbone.head.load_state_dict(method.backbone.head.state_dict())
    return other


def test_the_unit_is_its_equation() -> None:
    unit = Bottleneck(8, 3, scale=4.0, layernorm="in", init_std=0.5)
    x = torch.randn(5, 8)
    normed = nn.functional.layer_norm(x, (8,))
    inner = (normed @ unit.down.weight.T + unit.down.bias).relu()
    torch.testing.assert_close(unit(x), 4.0 * (inner @ unit.up.weight.T + unit.up.bias))
    after = Bottleneck(8, 3, scale=4.0, layernorm="out", init_std=0.5)
    inner = (x @ after.down.weight.T).relu() @ after.up.weight.T
    torch.testing.assert_close(after(x), nn.functional.layer_norm(4.0 * inner, (8,)))


def test_initialisation_of_the_unit() -> None:
    bert, lora = Bottleneck(256, 64), Bottleneck(256, 64, init="lora")
    for weight in (bert.down.weight, bert.up.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not lora.up.weight.any()
    assert lora.down.weight.abs().max() <= 1 / 256**0.5
    assert not any(unit.bias.any() for unit in (bert.down, bert.up, lora.down, lora.up))


def test_a_learned_scale_starts_where_the_constant_stands() -> None:
    unit = Bottleneck(8, 3, scale=2.0, learn_scale=True)
    assert isinstance(unit.scale, nn.Parameter)
    assert unit.scale.tolist() == [2.0]
    with pytest.raises(UserError, match="no activation 'gelu_nwe'"):
        Bottleneck(8, 3, activation="gelu_nwe")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_a_sequential_adapter_with_zero_up_projection_is_the_identity(
    placement: Any, key: str, build: Make, task: Make, batch: Make
) -> None:
    """Check 4."""
    method = Adapter(build(key), task(key), placement=placement, bottleneck=6, init="lora").eval()
    with torch.no_grad():  # the kernel depends on whether gradients are wanted
        found, expected = method(batch(key)), plain(method, key, build, task)(batch(key))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("key", KEYS)
def test_parallel_and_sequential_differ(key: str, build: Make, task: Make, batch: Make) -> None:
    sequential = Adapter(build(key), task(key), sites=("mlp",), activation="relu", train_norms=False, bottleneck=6)
    parallel = ParallelAdapter(build(key), task(key), scale=1.0, **SMALL)
    for method in (sequential, parallel):
        randomise(method)
    parallel.backbone.head.load_state_dict(sequential.backbone.head.state_dict())
    assert (sequential.eval()(batch(key)) - parallel.eval()(batch(key))).abs().max() > 1e-4


def test_pfeiffer_norms_twice_with_the_pretrained_norm(build: Make, task: Make) -> None:
    method = Adapter(build("bert"), task("bert"), placement="pfeiffer", bottleneck=6, train_norms=False).eval()
    randomise(method)
    whole = build("bert").eval()
    block, norm = whole.blocks("encoder")[0], whole.part("encoder", 0, "norm2")
    x = torch.randn(2, 5, 32)
    u = block.attention.output(block.attention.self(x, None)[0], x)
    f = block.output.dense(block.intermediate(u))
    z = norm(f + u)
    expected = norm(method.adapters["encoder_0_mlp_out"](z) + f + u)
    torch.testing.assert_close(method.backbone.blocks("encoder")[0](x, None), expected)


@pytest.mark.parametrize("key", KEYS)
def test_a_scale_of_zero_is_the_backbone(key: str, build: Make, task: Make, batch: Make) -> None:
    method = ParallelAdapter(build(key), task(key), scale=0.0, **SMALL)  # check 3
    randomise(method)
    torch.testing.assert_close(method.eval()(batch(key)), plain(method, key, build, task)(batch(key)))


@pytest.mark.parametrize("key", ["t5", "bert", "vit"])
def test_mam_without_prefix_is_the_scaled_parallel_adapter(key: str, build: Make, task: Make, batch: Make) -> None:
    parallel = ParallelAdapter(build(key), task(key), **SMALL).eval()
    mam = MAMAdapter(build(key), task(key), length=0, hidden=None, **SMALL).eval()
    randomise(parallel)
    mam.load_state_dict(parallel.state_dict(), strict=False)
    torch.testing.assert_close(mam(batch(key)), parallel(batch(key)), rtol=1e-5, atol=1e-5)
    assert mam.counted_parameters() == parallel.counted_parameters()


def test_mam_with_lora_beside_the_feed_forward(build: Make, task: Make) -> None:
    mam = MAMAdapter(build("bert"), task("bert"), length=2, hidden=None, mlp="lora", bottleneck=4, scale=3.0)
    assert mam.counted_parameters() == 3 * (2 * 2 * 32) + 3 * 2 * 4 * (32 + 48)
    assert mam.backbone.part("encoder", 0, "mlp_in").scaling["default"] == 3.0
    with pytest.raises(UserError, match="no learned scale"):
        MAMAdapter(build("bert"), task("bert"), mlp="lora", learn_scale=True)


@pytest.mark.parametrize("key", KEYS)
def test_beside_attention_the_change_goes_through_the_output_projection(
    key: str, build: Make, task: Make, batch: Make
) -> None:
    """(heads + A(x)) W_o: with W_up = 0 and b_up = c the attention's output moves by c W_o at every token."""
    method = ParallelAdapter(build(key), task(key), mlp=False, attention="parallel", attention_bottleneck=4).eval()
    stack = method.backbone.stacks[0]
    unit, out = method.adapters[f"{stack}_0_out"].change, method.backbone.part(stack, 0, "out")
    nn.init.zeros_(unit.up.weight)
    seen: list[torch.Tensor] = []
    out.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        method(batch(key))
        nn.init.normal_(unit.up.bias)
        method(batch(key))
        expected = out.forward(unit.up.bias) - out.forward(torch.zeros_like(unit.up.bias))
    moved = seen[1] - seen[0]
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-4, atol=1e-4)


def test_multihead_is_one_small_adapter_a_head() -> None:
    torch.manual_seed(0)
    heads, width, rows = 2, 3, 4
    query, keys, values = torch.randn(2, 5, 6), torch.randn(rows, 6), torch.randn(rows, 6)
    found = multihead_change(query, keys, values, heads, nn.Identity())
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        expected = (query[..., own] @ keys[:, own].T).relu() @ values[:, own]
        torch.testing.assert_close(found[..., own], expected)


def test_multihead_costs_what_prefix_tuning_costs_and_a_norm(build: Make, task: Make) -> None:
    method = ParallelAdapter(build("bert"), task("bert"), mlp=False, attention="multihead", attention_bottleneck=5)
    assert method.counted_parameters() == 3 * (2 * 5 * 32) + 3 * 2 * 32


def test_the_baseline_of_the_lst_paper_on_a_small_t5(build: Make, task: Make) -> None:
    method = Adapter(build("t5"), task("t5"), reduction=8)
    unit, norms = 2 * 32 * 4 + 4 + 32, 2 * 3 + 1 + 3 * 2 + 1
    assert method.counted_parameters() == (3 + 2) * 2 * unit + norms * 32
    assert type(method.adapters["encoder_0_out"].activation).__name__ == "NewGELUActivation"


def test_refusals(build: Make, task: Make) -> None:
    with pytest.raises(UserError, match="leaves no bottleneck"):
        Adapter(build("bert"), task("bert"), reduction=64)
    with pytest.raises(UserError, match="No place is left"):
        ParallelAdapter(build("bert"), task("bert"), mlp=False)
    with pytest.raises(UserError, match="does not have blocks whose projections"):
        Adapter(build("cnn"), task("cnn"))


def test_activation_checkpointing_changes_nothing(build: Make, task: Make, batch: Make) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        method = ParallelAdapter(build("bert"), task("bert"), attention="parallel", attention_bottleneck=4, **SMALL)
        for module in method.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        randomise(method)
        method.backbone.activation_checkpointing = checkpointing
        method.train().loss(batch("bert")).backward()
        gradients.append({n: p.grad for n, p in method.named_parameters() if p.requires_grad and "head" not in n})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)

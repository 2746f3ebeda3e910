"""LoRA and (IA)^3: exact targets, merging, what a low rank can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from transfer_run.methods.tuning.ia3 import IA3, FusedScale
from transfer_run.methods.tuning.lora import FusedLora, LoRA

Make = Callable[..., Any]
KEYS = ["t5", "bert", "gpt2", "llama", "vit", "clip"]


def perturb(method: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if parameter.requires_grad and "head" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("key", KEYS)
def test_merged_equals_unmerged_and_is_the_plain_model(key: str, build: Make, task: Make, batch: Make) -> None:
    lora = LoRA(build(key), task(key), rank=4, targets=("q", "v", "mlp_in")).double().eval()
    plain = dict(build(key).model.named_modules()).keys()
    data = {name: value.double() if value.is_floating_point() else value for name, value in batch(key).items()}
    perturb(lora)
    with torch.no_grad():
        before = lora(data)
        lora.fold()
        torch.testing.assert_close(lora(data), before, rtol=1e-9, atol=1e-9)  # check 8
    assert dict(lora.backbone.model.named_modules()).keys() == plain


@pytest.mark.parametrize("key", ["vit", "gpt2"])
def test_k_of_a_fused_projection_is_left_alone(key: str, build: Make, task: Make) -> None:
    plain = build(key)
    lora = LoRA(build(key), task(key), rank=4).eval()
    perturb(lora)
    path = plain.parts(plain.stacks[0], 0)["qkv"]
    x = torch.randn(2, 5, 32)
    q, k, v = (
        a - b
        for a, b in zip(
            lora.backbone.get_submodule(path)(x).chunk(3, -1), plain.get_submodule(path)(x).chunk(3, -1), strict=True
        )
    )
    assert not k.any()
    assert q.abs().min() > 0
    assert v.abs().min() > 0
    assert isinstance(lora.backbone.get_submodule(path), FusedLora)


def test_fused_lora_equals_peft_on_separate_projections() -> None:
    """The same A and B on q and v, fused and not."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 12)
    fused = FusedLora(linear, [0, 2], rank=2, alpha=4.0, dropout=0.0)
    nn.init.normal_(fused.lora_B["0"])
    nn.init.normal_(fused.lora_B["2"])
    x = torch.randn(3, 6)
    expected = [part.clone() for part in linear(x).chunk(3, -1)]
    for third in (0, 2):
        expected[third] += 4.0 / 2 * x @ fused.lora_A[str(third)].T @ fused.lora_B[str(third)].T
    torch.testing.assert_close(fused(x), torch.cat(expected, -1))


def test_a_change_of_rank_two_is_learned_exactly(build: Make, task: Make) -> None:
    """Check 8: with s = 1 and r = 2 the target W + dW of rank two is in reach."""
    torch.manual_seed(0)
    lora = LoRA(build("bert"), task("bert"), rank=2, alpha=2.0, dropout=0.0).double()
    path = lora.backbone.parts("encoder", 0)["q"]
    layer = lora.backbone.get_submodule(path)
    change = torch.randn(32, 2, dtype=torch.float64) @ torch.randn(2, 32, dtype=torch.float64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    left, values, right = torch.linalg.svd(change)
    with torch.no_grad():
        b.copy_(left[:, :2] * values[:2])
        a.copy_(right[:2])
    x = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ change.T)
    nn.init.kaiming_uniform_(a, a=5**0.5)
    nn.init.zeros_(b)
    optimizer = torch.optim.LBFGS([a, b], max_iter=200, line_search_fn="strong_wolfe")

    def distance() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (b @ a - change).square().sum()
        loss.backward()
        return loss

    optimizer.step(distance)
    assert distance() < 1e-10


def test_counts_by_formula(build: Make, task: Make) -> None:
    rank, d, inner = 4, 32, 4 * 12
    assert LoRA(build("t5"), task("t5"), rank=rank).counted_parameters() == (3 + 2 * 2) * 2 * rank * (d + inner)
    assert LoRA(build("vit"), task("vit"), rank=rank).counted_parameters() == 3 * 4 * rank * d
    feed_forward = LoRA(build("bert"), task("bert"), rank=rank, targets=("mlp_in", "mlp_out"))
    assert feed_forward.counted_parameters() == 3 * 2 * rank * (32 + 48)
    chosen = LoRA(build("t5"), task("t5"), rank=rank, layers={"encoder": [1], "decoder": []}, cross_attention=False)
    assert chosen.counted_parameters() == 2 * rank * (d + inner)


def test_bias_all_trains_whatever_is_called_bias(build: Make, task: Make) -> None:
    lora = LoRA(build("t5"), task("t5"), rank=4, bias="all", add_biases=True)
    names = {n for n, p in lora.named_parameters() if p.requires_grad and "lora_" not in n}
    assert names == {n for n, _ in lora.named_parameters() if "bias" in n}
    assert sum("relative_attention_bias" in n for n in names) == 2


@pytest.mark.parametrize("layers", [{"encoder": [2], "decoder": [1]}, {"encoder": [], "decoder": None}])
def test_bias_all_leaves_the_blocks_alone_that_are_not_chosen(layers: Any, build: Make, task: Make) -> None:
    """Figure 6 of the LST paper: no bias of an earlier block is trained, so backward does not visit it."""
    lora = LoRA(build("t5"), task("t5"), rank=4, bias="all", add_biases=True, layers=layers)
    backbone = lora.backbone
    for stack in backbone.stacks:
        wanted = layers[stack] if layers[stack] is not None else range(backbone.depth(stack))
        for index, block in enumerate(backbone.blocks(stack)):
            trained = any(p.requires_grad for p in block.parameters())
            assert trained == (index in wanted), (stack, index)
    assert lora.backbone.model.lm_head.bias.requires_grad
    ids = torch.randint(3, 40, (2, 5))
    state = backbone.embed({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "encoder")
    first = next(iter(backbone.taps(state))).hidden
    assert not first.requires_grad


@pytest.mark.parametrize("key", ["bert", "vit", "gpt2"])
def test_ia3_rescales_keys_values_and_inner_activations(key: str, build: Make, task: Make) -> None:
    method, plain = IA3(build(key), task(key)).eval(), build(key)
    stack, x = plain.stacks[0], torch.randn(2, 5, 32)
    perturb(method)
    ratio = {n: method.backbone.project(stack, 0, n, x) / plain.project(stack, 0, n, x) for n in "qkv"}
    torch.testing.assert_close(ratio["q"], torch.ones_like(x))
    for name in "kv":  # one number a channel, the same for every token
        assert (ratio[name] - 1).abs().max() > 0.01
        torch.testing.assert_close(ratio[name], ratio[name][:1, :1].expand_as(x), rtol=1e-3, atol=1e-3)
    out = method.backbone.part(stack, 0, "mlp_out")
    inner = torch.randn(2, plain.part(stack, 0, "mlp_out").weight.numel() // 32)
    scale = next(p for n, p in out.named_parameters() if "ia3_l" in n).flatten()
    torch.testing.assert_close(out(inner), plain.part(stack, 0, "mlp_out")(inner * scale))


def test_ia3_counts_by_formula(build: Make, task: Make) -> None:
    assert IA3(build("bert"), task("bert")).counted_parameters() == 3 * (2 * 32 + 48)
    assert IA3(build("t5"), task("t5")).counted_parameters() == 3 * (2 * 48 + 48) + 2 * (4 * 48 + 48)
    vit = IA3(build("vit"), task("vit"))
    assert vit.counted_parameters() == 3 * (2 * 32 + 4 * 32)
    assert sum(isinstance(m, FusedScale) for m in vit.modules()) == 3

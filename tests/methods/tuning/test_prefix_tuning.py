"""Prefixes: the identity of equations 7 to 9, visibility, positions, padding, the rows that are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.prefix import (
    LayerPrefix,
    PrefixAttention,
    PrefixMLP,
    PrefixTable,
    eager_attention,
    prefix_attention,
)
from transfer_run.methods.tuning.mam_adapter import MAMAdapter
from transfer_run.methods.tuning.prefix_tuning import PrefixTuning

Make = Callable[..., Any]
KEYS = ["t5", "bert", "gpt2", "llama", "vit", "clip"]


def randomise(method: Method, scale: float = 1.0) -> None:
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.startswith("prefixes"):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=random))


def attention(composition: Any, rows: tuple[Tensor, Tensor]) -> nn.Module:
    module = nn.Module()
    module.prefix = LayerPrefix(lambda: rows, composition)
    return module.eval()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mask", ["none", "boolean", "additive"])
def test_concatenation_is_the_gate(mask: str, groups: int) -> None:
    """Check 1, with a padding mask and a position bias, and with keys shared among heads."""
    torch.manual_seed(0)
    heads, width, length = 4, 6, 3
    q = torch.randn(2, heads, 5, width)
    k, v = torch.randn(2, 2, heads // groups, 7, width).unbind(0)
    rows = (torch.randn(length, heads // groups * width), torch.randn(length, heads // groups * width))
    keep = torch.rand(2, 1, 5, 7) > 0.3
    masks = {"none": None, "boolean": keep, "additive": torch.zeros(keep.shape).masked_fill(~keep, -1e9)}
    bias = torch.randn(1, heads, 5, 7)

    def run(composition: str, base: Any) -> Tensor:
        return prefix_attention(base, attention(composition, rows), q, k, v, masks[mask], position_bias=bias)[0]

    shared = attention("concat", rows)
    shared.num_key_value_groups = groups
    fused = prefix_attention(sdpa_attention_forward, shared, q, k, v, masks[mask], position_bias=bias)[0]
    concat = run("concat", eager_attention)
    torch.testing.assert_close(run("gated", eager_attention), concat, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused, concat, rtol=1e-5, atol=1e-6)
    assert (run("ungated", eager_attention) - concat).abs().max() > 1e-3


def test_a_key_aligned_with_the_query_takes_all_attention() -> None:
    """Check 10: the gate goes to one and the output to that row's value."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 1, 4).unbind(0)
    keys, values = torch.randn(2, 4), torch.randn(2, 4)
    keys[1] = 1e3 * q.flatten()
    out, _ = prefix_attention(eager_attention, attention("concat", (keys, values)), q, k, v, None)
    torch.testing.assert_close(out.flatten(), values[1])


def test_without_a_mask_a_causal_module_stays_causal() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind(0)
    module = attention("concat", (torch.randn(2, 8), torch.randn(2, 8)))
    module.is_causal = True
    for base in (eager_attention, sdpa_attention_forward):
        before = prefix_attention(base, module, q, k, v, None)[0]
        later = torch.cat([v[:, :, :3], v[:, :, 3:] + 1], dim=2)
        after = prefix_attention(base, module, q, k, later, None)[0]
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_prefix_of_no_rows_is_the_backbone(kernel: str, key: str, build: Make, task: Make, batch: Make) -> None:
    method = PrefixTuning(build(key), task(key), length=0, hidden=None).eval()  # check 3
    plain = Method(build(key), task(key)).eval()
    plain.backbone.head.load_state_dict(method.backbone.head.state_dict())
    method.backbone.set_attention(kernel)
    with torch.no_grad():
        torch.testing.assert_close(method(batch(key)), plain(batch(key)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_kernels_agree_and_a_change_of_kernel_keeps_the_prefix(key: str, build: Make, task: Make, batch: Make) -> None:
    method = PrefixTuning(build(key), task(key), length=3, hidden=None).eval()
    plain = Method(build(key), task(key)).eval()
    plain.backbone.head.load_state_dict(method.backbone.head.state_dict())
    randomise(method)
    with torch.no_grad():
        fused = method(batch(key))
        method.backbone.set_attention("eager")
        torch.testing.assert_close(method(batch(key)), fused, rtol=1e-4, atol=1e-5)
        assert (plain(batch(key)) - fused).abs().max() > 1e-3


@pytest.mark.parametrize("key", ["t5", "bert", "gpt2", "llama"])
def test_padding_never_matters(key: str, build: Make, task: Make, batch: Make) -> None:
    """Check 7."""
    method, data = PrefixTuning(build(key), task(key), length=3, hidden=None).eval(), batch(key)
    randomise(method)
    before = method(data)
    other = {**data, "input_ids": torch.where(data["attention_mask"].bool(), data["input_ids"], 77)}
    torch.testing.assert_close(method(other), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("composition", ["concat", "ungated"])
def test_cached_decoding_equals_uncached(composition: Any, build: Make, task: Make, batch: Make) -> None:
    method = PrefixTuning(build("t5"), task("t5"), length=3, hidden=None, composition=composition).eval()
    randomise(method, 0.5)
    data, memory, cache = batch("t5"), None, method.new_cache()
    tokens = torch.tensor([[0, 9, 4, 30]]).expand(4, -1)
    with torch.no_grad():
        memory = method.encode(data)
        whole = method.decode({**data, "decoder_input_ids": tokens}, memory)
        steps = [method.decode({**data, "decoder_input_ids": tokens[:, i : i + 1], "cache": cache}, memory)
                 for i in range(4)]  # fmt: skip
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


def test_every_attention_of_an_encoder_decoder_has_its_own_rows(build: Make, task: Make) -> None:
    method = PrefixTuning(build("t5"), task("t5"), length=3, hidden=8)
    assert set(method.prefixes) == {"encoder_self", "decoder_self", "decoder_cross"}
    alone = PrefixTuning(build("t5"), task("t5"), length=3, hidden=8, cross_attention=False)
    assert set(alone.prefixes) == {"encoder_self", "decoder_self"}
    some = PrefixTuning(build("t5"), task("t5"), length=3, hidden=None, layers={"encoder": [1], "decoder": []})
    assert some.counted_parameters() == 2 * 3 * 48


def test_the_mlp_is_computed_share_by_share_and_settles_into_its_rows(build: Make, task: Make, batch: Make) -> None:
    torch.manual_seed(0)
    source = PrefixMLP(depth=3, length=2, width=4, hidden=5, like=torch.zeros(1))
    hidden = torch.tanh(source.embedding @ source.inner.weight.T + source.inner.bias)
    whole = (hidden @ source.outer.weight.T + source.outer.bias).unflatten(-1, (3, 2, 4))
    for index in range(3):
        keys, values = source(index)
        torch.testing.assert_close(keys, whole[:, index, 0])
        torch.testing.assert_close(values, whole[:, index, 1])
    method = PrefixTuning(build("bert"), task("bert"), length=2, hidden=8).eval()
    before, counted = method(batch("bert")), method.counted_parameters()
    method.settle()
    torch.testing.assert_close(method(batch("bert")), before)
    assert isinstance(method.prefixes["encoder_self"], PrefixTable)
    assert method.counted_parameters() == counted == 3 * 2 * 2 * 32
    assert {n for n in method.shipped() if n.startswith("prefixes")} == {"prefixes.encoder_self.rows"}


def test_counts_of_the_paper(build: Make, task: Make) -> None:
    """Check 5: the sizes of BART-large and RoBERTa-base, on the meta device; biases counted apart."""
    large: dict[str, Any] = {"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 4096, "num_layers": 12,
                             "num_decoder_layers": 12}  # fmt: skip
    base: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
                            "num_hidden_layers": 12}  # fmt: skip
    meta = partial(build, device="meta")
    assert PrefixTuning(meta("t5", **large), task("t5"), length=200).counted_parameters() == 14_745_600
    mam = MAMAdapter(meta("t5", **large), task("t5"))
    biases = 24 * (512 + 1024)
    assert mam.counted_parameters() - biases == 27_377_664
    small = MAMAdapter(meta("bert", **base), task("bert"), length=16, bottleneck=16, scale=2.0)
    assert small.counted_parameters() - 12 * (16 + 768) == 589_824


def test_timm_attention_is_replaced_under_the_same_names(build: Make, task: Make) -> None:
    plain = build("vit")
    method = PrefixTuning(build("vit"), task("vit"), length=3, hidden=None)
    assert isinstance(method.backbone.part("image", 0, "attention"), PrefixAttention)
    assert dict(method.backbone.model.state_dict()).keys() == dict(plain.model.state_dict()).keys()


def test_the_prefix_is_the_only_new_thing_a_query_sees(build: Make, task: Make) -> None:
    """One block of the ViT, by hand: heads over [P; patches]."""
    method = PrefixTuning(build("vit"), task("vit"), length=3, hidden=None).eval()
    randomise(method)
    module = method.backbone.part("image", 1, "attention")
    x = torch.randn(2, 5, 32)
    q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in module.qkv(x).chunk(3, -1))
    keys, values = (row.unflatten(-1, (4, 8)).transpose(0, 1).expand(2, -1, -1, -1) for row in module.prefix.rows())
    heads = F.scaled_dot_product_attention(q, torch.cat([keys, k], 2), torch.cat([values, v], 2))
    torch.testing.assert_close(module(x), module.proj(heads.transpose(1, 2).flatten(2)))


def test_models_without_a_switch_are_refused(build: Make, task: Make) -> None:
    with pytest.raises(UserError, match="cannot take a prefix") as error:
        PrefixTuning(build("deberta"), task("deberta"))
    assert "prompt_tuning" in error.value.remedy

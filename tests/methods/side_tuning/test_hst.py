"""The checks of the HST spec (9 is tests/oracles/test_hst.py), on a ViT and on CLIP's image tower."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from tests.methods.side_tuning import models
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.memory.fake import fake_mode, make_fake
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.side_tuning.hst import HST
from transfer_run.methods.side_tuning.parts.pyramid import CrossAttention, Entry, HeadNorm
from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task

ROOT = Path(__file__).parents[3]
MIB = 2**20
EXACT = {"atol": 1e-10, "rtol": 1e-9}
TASK = Task("classification", 5)
SIDE: dict[str, Any] = {"side_dims": [8, 12, 16, 24], "side_heads": [2, 3, 4, 4], "side_mlp_ratio": 2.0,
                        "drop_path": 0.0}  # fmt: skip
VIT = {"model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 4}
CLIP = {
    "projection_dim": 16,
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
                      "image_size": 32, "patch_size": 8},
    "text_config": {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "eos_token_id": 1},
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"family": "vit", "architecture": VIT},
    "vit-registers": {"family": "vit", "architecture": VIT | {"reg_tokens": 2, "init_values": 0.3, "qk_norm": True}},
    "vit-average": {"family": "vit", "architecture": VIT | {"global_pool": "avg", "class_token": False}},
    "clip": {"family": "clip", "tower": "image", "architecture": CLIP},
}


def hst(name: str = "vit", **settings: Any) -> HST:
    """In eval mode and float64, with weights that all matter."""
    model = build_backbone({"name": name, "weights": "random:1", **CONFIGS[name]}).double()
    torch.manual_seed(3)
    method = HST(model, TASK, **SIDE | settings).double()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return method.eval()


def batch(rows: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=draw).double(), "labels": torch.arange(rows) % 5}


# ---- 1
@cache
def vit_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / f"configs/backbone/{name}.yaml").read_text())
    return config


def on_meta(name: str, **settings: Any) -> HST:
    backbone = build_backbone(vit_config(name), device="meta")
    with torch.device("meta"):
        return HST(backbone, Task("classification", 100), **settings)


COUNTS: list[tuple[str, dict[str, Any], int, int]] = [
    ("vit_base_patch16_224", {}, 764_840, 7_300), ("vit_small_patch16_224", {}, 658_856, 7_300),
    ("vit_large_patch16_224", {}, 1_360_544, 7_300),
    ("vit_base_patch16_224", {"side_dims": [64, 128, 256, 384]}, 10_404_096, 38_500),
    ("vit_base_patch16_224", {"share_bridge": False}, 764_840 + 2 * 166_104, 7_300),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "total", "head"), COUNTS)
def test_trained_parameters(name: str, settings: dict[str, Any], total: int, head: int) -> None:
    """As counted on the released class; with a bridge a block the paper's ablation has 1.10 M."""
    method = on_meta(name, **settings)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == total + head
    assert method.counted_parameters() == total


def test_parts_of_vit_base() -> None:
    method = on_meta("vit_base_patch16_224")

    def count(*modules: Any) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert method.meta is not None
    assert method.bridge.norms is not None
    assert count(*(stage.entry for stage in method.stages)) == 88_616
    assert count(*(stage.blocks for stage in method.stages)) == 462_312
    assert count(*(stage.norm for stage in method.stages)) == 432
    assert (count(method.bridge.maps), count(method.bridge.norms), method.meta.numel()) == (166_104, 1_296, 9_216)
    assert sum(p.numel() for p in method.backbone.model.parameters() if p.requires_grad) == 36_864
    assert [len(stage.blocks) for stage in method.stages] == [3, 3, 3, 3]


def test_shapes_at_224() -> None:
    method = on_meta("vit_base_patch16_224").eval()
    maps = method.pyramid({"pixel_values": torch.empty(2, 3, 224, 224, device="meta")})
    assert [tuple(m.shape) for m in maps] == [(2, 32, 56, 56), (2, 48, 28, 28), (2, 64, 14, 14), (2, 72, 7, 7)]


# ---- 2
SETTINGS: list[dict[str, Any]] = [
    {}, {"num_meta_tokens": 3}, {"num_meta_tokens": 0}, {"num_meta_tokens": 0, "tune_block_norms": False},
    {"fine_injection": False}, {"global_token": False}, {"fine_injection": False, "global_token": False},
    {"share_bridge": False}, {"side_depths": [1, 1, 1, 3]}, {"head_bn_affine": True}, {"side_heads": [8, 12, 16, 24]},
]  # fmt: skip


def agree(name: str, settings: dict[str, Any], *others: dict[str, Any]) -> None:
    """Logits and all gradients, in training mode."""
    given, results = batch(), []
    for other in others:
        method = hst(name, **settings, **other).train()
        logits = method(given)
        results.append((logits.detach(), models.gradients(method, given)))  # type: ignore[arg-type]
    for logits, gradients in results[1:]:
        torch.testing.assert_close(logits, results[0][0], **EXACT)
        assert set(gradients) == set(results[0][1])
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][key], **EXACT, msg=key)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
def test_memory_modes_agree(settings: dict[str, Any]) -> None:
    agree("vit", settings, {"memory_mode": "official"}, {"memory_mode": "efficient"})


@pytest.mark.parametrize("name", list(CONFIGS))
def test_bridge_orders_agree_on_every_family(name: str) -> None:
    orders = [{"bridge_order": order, "memory_mode": mode} for order in ("resize_first", "project_first")
              for mode in ("official", "efficient")]  # fmt: skip
    agree(name, {}, *orders)


def test_recomputing_changes_nothing() -> None:
    method, given = hst(drop_path=0.3).train(), batch()
    results = []
    for checkpointing in (False, True):
        method.backbone.activation_checkpointing = checkpointing
        torch.manual_seed(0)
        results.append(models.gradients(method, given))  # type: ignore[arg-type]
    for key, gradient in results[0].items():
        torch.testing.assert_close(results[1][key], gradient, **EXACT, msg=key)


# ---- 3
@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_is_trained(name: str) -> None:
    method = hst(name)  # in training a batch norm would take what its input's biases add
    gradients = models.gradients(method, batch())  # type: ignore[arg-type]
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    assert set(gradients) == trained
    depth = method.backbone.depth("image")
    silent = {key for key, gradient in gradients.items() if gradient.abs().max() < 1e-14}
    assert all(key.endswith(".attention.k.bias") for key in silent), silent  # the same for all keys: softmax drops it
    own = {key.removeprefix("backbone.model.") for key in trained if key.startswith("backbone.model.")}
    norms = [method.backbone.parts("image", i)[n] for i in range(depth) for n in ("norm1", "norm2")]
    expected = {f"{norm}.{kind}".removeprefix("model.") for norm in norms for kind in ("weight", "bias")}
    assert own == expected
    assert method.needs_backbone_gradient


# ---- 4, 5
@pytest.mark.parametrize("lean", [False, True])
def test_equal_summary_tokens_leave_no_choice(lean: bool) -> None:
    attention = CrossAttention(16, 4, lean=lean).double()
    x, token = torch.randn(2, 9, 16).double(), torch.randn(2, 1, 16).double()
    out = attention(x, token.expand(-1, 2, -1))
    torch.testing.assert_close(out, attention.proj(attention.v(token)).expand(-1, 9, -1), **EXACT)


@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_without_bridges_the_vit_does_not_matter(memory_mode: str) -> None:
    method, given, seen = hst(memory_mode=memory_mode), batch(), []
    with torch.no_grad():
        for bridge in method.bridge.maps:
            bridge.weight.zero_()  # type: ignore[operator,union-attr]
            bridge.bias.zero_()  # type: ignore[operator,union-attr]
    assert method.bridge.norms is not None
    method.stages[0].blocks[0].register_forward_hook(lambda m, args, out: seen.append(args))  # type: ignore[union-attr,index]
    before = method(given)
    _, summary, injected = seen[0]
    assert injected.abs().max() == 0
    torch.testing.assert_close(summary[:, 0], method.bridge.norms[0].bias.expand(4, -1), **EXACT)  # type: ignore[union-attr,operator]
    assert summary[:, 1].abs().max() == 0
    with torch.no_grad():
        for parameter in method.backbone.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.testing.assert_close(method(given), before, **EXACT)


# ---- 6
def test_without_meta_tokens_and_norms_nothing_of_the_vit_is_kept() -> None:
    free = {"num_meta_tokens": 0, "tune_block_norms": False}
    method, given, saved = hst(**free), batch(), []
    assert not method.needs_backbone_gradient

    def note(module: Any, args: Any, out: Tensor) -> None:
        saved.append(out.requires_grad)

    for block in method.backbone.blocks("image"):
        block.register_forward_hook(note)
    logits = method(given)
    assert saved == [False] * 6
    method.needs_backbone_gradient = True  # the same with a graph, if anything asked for one
    torch.testing.assert_close(method(given), logits, **EXACT)
    inside: dict[int, Tensor] = {}  # held, so that no address is used twice
    kept: set[int] = set()
    alone = hst(**free)
    for block in alone.backbone.blocks("image"):
        for module in (m for m in block.modules() if m is not block):
            module.register_forward_hook(lambda m, i, o: inside.update({o.untyped_storage().data_ptr(): o}))

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alone.loss(given)
    assert kept
    assert inside
    assert not kept & inside.keys(), "what stays inside the ViT's blocks is not kept for backward"
    small = models.kept_bytes(hst(**free), given)  # type: ignore[arg-type]
    assert small < 0.5 * models.kept_bytes(hst(), given)  # type: ignore[arg-type]


# ---- 7
def test_modes() -> None:
    method, given = hst(), batch()
    assert torch.equal(method(given), method(given))
    assert not torch.allclose(method(given), method.train()(given))
    dropped = hst(drop_path=0.5).train()
    assert not torch.allclose(dropped(given), dropped(given))
    dropped.eval()
    assert torch.equal(dropped(given), dropped(given))


def test_stochastic_depth_rises_linearly_in_both_networks() -> None:
    method = hst(drop_path=0.5)
    side = [block.drop_path.drop_prob for stage in method.stages for block in stage.blocks]  # type: ignore[union-attr]
    assert side == pytest.approx([0.1 * i for i in range(6)])
    assert [drop.drop_prob for drop in method.block_drops] == pytest.approx(
        [0.1 * i for i in range(1, 6) for _ in "ab"]
    )
    branches = [method.backbone.part("image", 1, name) for name in ("out", "mlp")]
    x = torch.ones(512, 2, 32, dtype=torch.float64)
    method.train()
    for branch in branches:
        rows, rest = branch(x), branch.forward(x)
        dropped = (rows == 0).flatten(1).all(1)
        assert 0.03 < dropped.double().mean() < 0.2
        torch.testing.assert_close(rows[~dropped], rest[~dropped] / 0.9, **EXACT)


def test_a_batch_of_one_trains() -> None:
    method = hst().train()
    loss = method.loss(batch(1))
    loss.backward()
    assert torch.isfinite(loss)
    norm = HeadNorm(3, eps=1e-6, affine=False)
    x = torch.randn(1, 3)
    torch.testing.assert_close(norm.train()(x), norm.eval()(x))
    many = torch.randn(8, 3)
    expected = (many - many.mean(0)) / (many.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(norm.train()(many), expected)


# ---- 8
def test_even_a_zero_meta_token_is_seen() -> None:
    """A key of LayerNorm's bias changes the stream; without meta tokens it is the plain ViT's."""
    for count, same in ((1, False), (0, True)):
        method, given, outputs = hst(num_meta_tokens=count), batch(), []
        if method.meta is not None:
            torch.nn.init.zeros_(method.meta)
        for block in method.backbone.blocks("image"):
            block.register_forward_hook(lambda m, args, out, keep=outputs: keep.append(out[:, -17:]))
        method(given)
        ours = list(outputs)
        method.backbone.run(method.backbone.embed(given))
        equal = [torch.allclose(a, b, atol=1e-9) for a, b in zip(ours, outputs[6:], strict=True)]
        assert equal == [same] * 6


def test_initial_values() -> None:
    model = build_backbone({"name": "vit", "weights": "random:1", **CONFIGS["vit"]})
    method = HST(model, TASK)
    assert method.meta is not None
    bound = (6 / (2 * 32)) ** 0.5
    assert 0.9 * bound < method.meta.abs().max() <= bound
    linear, conv = method.bridge.maps[3], method.stages[3].entry.conv  # type: ignore[union-attr]
    assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.1)  # type: ignore[operator,union-attr]
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * 72)) ** 0.5, rel=0.05)  # type: ignore[operator,union-attr]
    assert all(
        (p == 0).all() for n, p in method.named_parameters() if n.endswith(".bias") and "backbone.model" not in n
    )


# ---- memory
def planned_mib(make: Any, rows: int = 2) -> float:
    """MiB an image that autograd keeps at ViT-B/16's shapes, eager attention, evaluation mode, weights left out."""
    backbone = build_backbone(vit_config("vit_base_patch16_224"), device="meta")
    with torch.device("meta"):
        method = make(backbone, Task("classification", 100)).eval()
    backbone.set_attention("eager")
    mode = fake_mode()
    make_fake(method, mode)
    with mode:
        given = {"pixel_values": torch.empty(rows, 3, 224, 224), "labels": torch.zeros(rows).long()}
        return models.kept_bytes(method, given) / rows / MIB


def test_kept_at_vit_base() -> None:
    """The figures measured on the released forward; what the project keeps is below full fine-tuning's."""
    official = planned_mib(lambda b, t: HST(b, t, memory_mode="official"))
    projected = planned_mib(lambda b, t: HST(b, t, memory_mode="official", bridge_order="project_first"))
    efficient = planned_mib(lambda b, t: HST(b, t))
    full = planned_mib(lambda b, t: Full(b, t))
    assert official == pytest.approx(158.4, rel=0.005)
    assert full == pytest.approx(133.9, rel=0.005)
    assert official - projected > 27
    assert official - efficient > 45
    assert efficient < full


def test_measured_peaks() -> None:
    peaks = {}
    for mode in ("official", "efficient"):
        method = hst(memory_mode=mode, side_dims=[16, 24, 32, 36], side_heads=[2, 4, 8, 12]).train()
        given = batch(8)
        with MemoryTracker() as tracker:
            tracker.hold_model(method)
            tracker.hold(given.values(), "inputs")
            tracker.mark("forward")
            loss = method.loss(given)
            tracker.mark("backward")
            loss.backward()
            tracker.hold_gradients(method)
        peaks[mode] = tracker.report().phases["forward"].by_kind["activations"]
    assert peaks["efficient"] < 0.9 * peaks["official"]


# ---- refusals
@pytest.mark.parametrize(("settings", "reason"), [
    ({"side_depths": [3, 3, 3, 3]}, "6 blocks"), ({"side_depths": [6, 0, 0, 0]}, "at least one"),
    ({"side_dims": [8, 12, 16]}, "do not fit"), ({"side_heads": [3, 3, 4, 4]}, "do not divide"),
    ({"num_meta_tokens": 0, "global_token": False}, "nothing to attend"),
])  # fmt: skip
def test_refusals(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        hst(**settings)


def test_a_text_tower_is_refused() -> None:
    config = {"name": "clip", "weights": "random:1", **CONFIGS["clip"], "tower": "text"}
    with pytest.raises(UserError, match="stem on the image"):
        HST(build_backbone(config), TASK)


def test_without_injection_the_side_stream_sees_the_image_alone() -> None:
    """No fine path and no ViT in the summary: only the stem's path is left, as with a ViT that is not there."""
    method, given = hst(fine_injection=False), batch()
    seen: list[Any] = []
    method.stages[1].blocks[0].register_forward_hook(lambda m, args, out: seen.append(args[2]))  # type: ignore[union-attr,index]
    method(given)
    assert seen == [None]
    assert F.mse_loss(method(given), hst()(given)) > 1e-6


def fill_freed_memory() -> None:
    """What is allocated next, and not written to, holds no numbers."""
    for size in (10**3, 10**4, 10**5, 10**6):
        blocks = [torch.full((size,), torch.nan) for _ in range(20)]
        del blocks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_map_of_one_pixel_goes_through_the_middle_of_the_kernel(dtype: torch.dtype) -> None:
    """As the convolution does; in bfloat16 with gradients that are the same at every call."""
    entry = Entry(48, 64, stem=False).to(dtype)
    pixel = torch.randn(8, 48, 1, 1, dtype=dtype)
    tokens, size = entry(pixel)
    assert (tokens.shape, size) == ((8, 1, 64), (1, 1))
    if dtype is torch.float64:
        torch.testing.assert_close(tokens, entry.norm(entry.conv(pixel).flatten(2).transpose(1, 2)))
    gradients = []
    for _ in range(4):
        fill_freed_memory()
        entry.zero_grad()
        entry(pixel)[0].square().sum().backward()
        gradients.append(entry.conv.weight.grad.clone())
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)

"""What VQT keeps for backward: planned at ViT-B/16's shapes, measured on a small one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.methods.side_tuning import models
from transfer_run.backbones.load import build_backbone
from transfer_run.memory.fake import fake_mode, make_fake
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.base import Method
from transfer_run.methods.side_tuning.vqt import VQT
from transfer_run.methods.tuning.linear_probe import LinearProbe
from transfer_run.task import Task

ROOT = Path(__file__).parents[3]
MIB = 2**20


@cache
def vit_base() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/backbone/vit_base_patch16_224.yaml").read_text())
    return config


def on_meta(**settings: Any) -> VQT:
    backbone = build_backbone(vit_base(), device="meta")
    with torch.device("meta"):
        return VQT(backbone, Task("classification", 100), **settings)


def planned_mib(rows: int = 2, **settings: Any) -> float:
    """MiB an image that autograd keeps, eager attention, weights left out; on fake tensors."""
    method = on_meta(**settings).eval()
    method.backbone.set_attention("eager")
    mode = fake_mode()
    make_fake(method, mode)
    with mode:
        images = torch.empty(rows, 3, 224, 224)
        return models.kept_bytes(method, {"pixel_values": images, "labels": torch.zeros(rows).long()}) / rows / MIB  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "mib"), [("official", 91.6), ("efficient", 14.2)])
def test_kept_at_vit_base(mode: str, mib: float) -> None:
    """The figures that were measured on the released forward, and on a query stream of its own."""
    assert planned_mib(memory_mode=mode) == pytest.approx(mib, rel=0.005)


def test_the_separate_stream_keeps_a_fraction() -> None:
    """Check 5: below a quarter of the joint form's, keys and values included; they are nearly all of it."""
    efficient = planned_mib(memory_mode="efficient")
    assert efficient < 0.25 * planned_mib(memory_mode="official")
    assert efficient == pytest.approx(2 * 12 * 197 * 768 * 4 / MIB, rel=0.03)
    assert planned_mib(num_query_tokens=20) < 1.6 * efficient


PARAMETERS = [(1, 9216, 9984, 998500), (10, 92160, 92928, 9292900), (20, 184320, 185088, 18508900)]


@pytest.mark.parametrize(("tokens", "queries", "features", "head"), PARAMETERS)
def test_parameters_of_vit_base(tokens: int, queries: int, features: int, head: int) -> None:
    method = on_meta(num_query_tokens=tokens)
    assert method.queries is not None
    assert method.queries.numel() == queries == method.counted_parameters()
    assert method.combine.features == features
    assert sum(p.numel() for p in method.backbone.head.parameters()) == head


def peak_of_step(make: Any, *, checkpointing: bool = False, rows: int = 8) -> int:
    """Bytes of activations at the peak of forward and backward, followed by the tracker on real tensors."""
    torch.manual_seed(0)
    backbone = models.backbone("vit", img_size=32, embed_dim=64, depth=6)
    backbone.activation_checkpointing = checkpointing
    method: Method = make(backbone, Task("classification", 5)).train()
    batch = {"pixel_values": torch.randn(rows, 1, 32, 32), "labels": torch.arange(rows) % 5}
    with MemoryTracker() as tracker:
        tracker.hold_model(method)
        tracker.hold(batch.values(), "inputs")
        tracker.mark("forward")
        loss = method.loss(batch)
        tracker.mark("backward")
        loss.backward()
        tracker.hold_gradients(method)
    peaks = [peak.by_kind["activations"] for peak in tracker.report().phases.values()]
    return max(peaks)


def test_measured_peaks() -> None:
    """The tracker's peaks of activations: official > efficient > recomputed; the probe's is a block's own."""
    official = peak_of_step(lambda b, t: VQT(b, t, memory_mode="official"))
    efficient = peak_of_step(lambda b, t: VQT(b, t))
    recomputed = peak_of_step(lambda b, t: VQT(b, t), checkpointing=True)
    probe = peak_of_step(lambda b, t: LinearProbe(b, t))
    assert efficient < 0.4 * official
    assert probe < recomputed < efficient

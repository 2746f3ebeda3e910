"""What UniPT and SHERL are tested on: models of every family, a method with weights that matter, and a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.methods.side_tuning import models
from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.side_tuning.parallel.tap_tuning import TapTuning
from transfer_run.task import Task

_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "projection_dim": 16}
_CLIP: dict[str, Any] = {
    "family": "clip", "architecture": {
        "projection_dim": 16,
        "vision_config": {**_TOWER, "num_hidden_layers": 4, "num_channels": 1, "image_size": 8, "patch_size": 4},
        "text_config": {**_TOWER, "num_hidden_layers": 3, "vocab_size": models.VOCABULARY, "bos_token_id": 2,
                        "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 16},
    },
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "clip-image": {**_CLIP, "tower": "image"},
    "clip-text": {**_CLIP, "tower": "text"},
    "cnn": {"family": "cnn", "architecture": {"model": "resnet18", "in_chans": 1, "layers": [1, 1, 1, 2],
                                              "channels": [8, 12, 16, 24]}},
    "cnn-single": {"family": "cnn", "architecture": {"model": "resnet18", "in_chans": 1, "layers": [1, 1, 1, 1],
                                                     "channels": [8, 12, 16, 24]}},
}  # fmt: skip
NAMES = ("t5", "t5-gated", "t5-head", "bert", "roberta", "deberta", "gpt2", "gpt2-head", "llama", "qwen3", "vit",
         "vit-average", *EXTRA)  # fmt: skip


def backbone(name: str, **architecture: Any) -> Backbone:
    """`NAME-head` is the model NAME under a classification head."""
    if name not in EXTRA:
        return models.backbone(name.removesuffix("-head"), **architecture)
    config = {**EXTRA[name], "name": name, "weights": "random"}
    config["architecture"] = config["architecture"] | architecture
    torch.manual_seed(0)
    return build_backbone(config)


def task(name: str, model: Backbone) -> Task:
    if name.endswith("-head") or name in EXTRA:
        return Task("classification", models.CLASSES)
    return models.task(model)


def tuned(kind: type[TapTuning], name: str, *, architecture: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The method in float64 and evaluation mode, every trained weight at a value that matters."""
    model = backbone(name, **(architecture or {}))
    method = kind(model, task(name, model), **settings).double()
    stir(method)
    return method.eval()


def stir(method: TapTuning) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for name, p in method.named_parameters():
            if p.requires_grad:
                scale = 0.05 if name.endswith(("gate.g", ".g")) else 0.3
                p.copy_(scale * torch.randn_like(p) + (p.dim() == 1 and name.endswith("weight")))
                if "score.bias" in name or ("spatial" in name and name.endswith("bias")):
                    p.fill_(2.0)  # no score of SHERL is cut at zero for all tokens
        for name, buffer in method.named_buffers():
            if name.startswith("sides.") and name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)


def batch(name: str, method: TapTuning, rows: int = 5, seed: int = 1, size: int = 64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % models.CLASSES
    if name in ("cnn", "cnn-single"):
        return {"pixel_values": torch.randn(rows, 1, size, size, generator=draw).double(), "labels": labels}
    if name == "clip-image":
        return {"pixel_values": torch.randn(rows, 1, 8, 8, generator=draw).double(), "labels": labels}
    if name == "clip-text":
        made = models.batch(models.backbone("bert"), rows, seed=seed)
        ids, last = made["input_ids"].clamp(min=3), made["attention_mask"].sum(1, keepdim=True) - 1
        return {**made, "input_ids": ids.scatter(1, last, 1), "labels": labels}
    made = models.batch(method.backbone, rows, seed=seed)
    if name.endswith("-head"):
        made["labels"] = labels
    return {k: v.double() if v.is_floating_point() else v for k, v in made.items()}


def tracked(method: TapTuning, given: dict[str, Tensor]) -> dict[str, int]:
    """Bytes alive when forward has ended, above those of the model and the batch; and the peak of the whole step."""
    method.zero_grad(set_to_none=True)
    with MemoryTracker() as tracker:
        tracker.hold_model(method)
        tracker.hold(given.values(), "inputs")
        before = tracker.current
        tracker.mark("forward")
        loss = method.loss(given)
        kept = tracker.current - before
        tracker.mark("backward")
        loss.backward()
        return {"kept": kept, "peak": tracker.report().peak - before}

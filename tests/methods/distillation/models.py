"""Tiny students and teachers, and the batches that both read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.methods.base import Method
from transfer_run.methods.distillation.distiller import AUGMENTATION, INTER, KD, MI, Distiller
from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task

VOCABULARY, CLASSES = 40, 3
TASK = Task("classification", CLASSES)
BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 4,
    "num_heads": 4,
}  # fmt: skip


def bert(seed: int = 0, layers: int = 4, width: int = 32, **more: Any) -> Backbone:
    sizes = BERT | {"num_hidden_layers": layers, "hidden_size": width} | more
    return build_backbone(
        {"family": "encoder", "name": "bert", "tokenizer": "bytes", "weights": f"random:{seed}", "architecture": sizes}
    )


def vit(seed: int = 0, layers: int = 4, width: int = 32, **more: Any) -> Backbone:
    sizes = VIT | {"depth": layers, "embed_dim": width}
    image = {"size": 8, "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "channels": 1} | dict(more)
    return build_backbone(
        {"family": "vit", "name": "vit", "weights": f"random:{seed}", "architecture": sizes, "image": image}
    )


def distiller(
    student: Backbone, teacher: Backbone | Method | None, task: Task = TASK, augment: str = "none", **settings: Any
) -> Distiller:
    """A distiller with its teacher; `settings` are changed keys of its groups: `inter={"loss": "mse"}`."""
    torch.manual_seed(3)
    groups: dict[str, Any] = {"kd": KD, "inter": INTER, "mi": MI, "augmentation": AUGMENTATION}
    method = Distiller(student, task, augment=augment, **{n: v | settings.get(n, {}) for n, v in groups.items()})
    if teacher is not None:
        torch.manual_seed(4)
        source = teacher if isinstance(teacher, Method) else Full(teacher, task)
        method.take_sources(lambda name: source)
    return method


def text(rows: int = 6, length: int = 9, seed: int = 1) -> dict[str, Tensor]:
    """Right-padded rows of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=draw)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None] % 4).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(rows) % CLASSES}


def images(rows: int = 6, seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(rows, 1, 8, 8, generator=draw), "labels": torch.arange(rows) % CLASSES}

"""A small ViT of any depth, its line, and a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests import small
from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.methods.base import Method
from transfer_run.methods.initialization.tleg import Tleg
from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task

TASK = Task("classification", 3, ("a", "b", "c"))
AUGMENT: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0}


def vit(depth: int = 4, seed: int = 0, **architecture: Any) -> Backbone:
    words = {"class_token": False, "global_pool": "avg", "fc_norm": False, **architecture}
    image = {"size": 16, "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "channels": 3}
    config = {"name": "vit-test", "weights": f"random:{seed}", "image": image, **small.CONFIGS["vit"]}
    return build_backbone({**config, "architecture": {**config["architecture"], "depth": depth, **words}})


def learned(depth: int = 4, task: Task = TASK, **settings: Any) -> Tleg:
    """A line that is steep everywhere, norms and biases included, as after training."""
    torch.manual_seed(5)
    method = Tleg(vit(depth), task, **{**AUGMENT, **settings})
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method


def taught(depth: int = 4, **settings: Any) -> Tleg:
    method = learned(depth, **settings)
    teacher = Full(vit(2, seed=3), TASK)
    method.take_sources(lambda name: teacher.eval())
    return method.train()


def batch(rows: int = 6) -> dict[str, Tensor]:
    return small.batch("vit", "classification", rows)


def weights_of(method: Method) -> list[dict[str, Tensor]]:
    """Of each block, by name."""
    stack = method.backbone.stacks[0]
    return [dict(block.named_parameters()) for block in method.backbone.blocks(stack)]

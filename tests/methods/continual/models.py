"""ZSCL on the tiny CLIP and a sequence of digits."""

from __future__ import annotations

from typing import Any

import torch

from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.experiment.config.compose import compose
from transfer_run.methods.build import build_method
from transfer_run.methods.continual.zscl import ZSCL

QUICK = ("dataset.reference.texts=random", "dataset.reference.sentences=20", "dataset.batch_size=8")
PLAIN = ("method.distill.weight=0", "method.wc.weight=0", "method.we.enabled=false")


def words(*more: str) -> list[str]:
    """A run's words; later ones win."""
    general = [
        "method=zscl",
        "backbone=clip_tiny",
        "backbone.weights=random:0",
        "dataset=sequence",
        "hardware=cpu",
        *QUICK,
    ]
    return list({word.partition("=")[0]: word for word in (*general, *more)}.values())


def config(*more: str) -> dict[str, Any]:
    return dict(compose(words(*more)).config)


def data_of(*more: str) -> Any:
    """The data, read."""
    values = config(*more)
    data = build_data(values["dataset"], values["backbone"], 0)
    data.setup()
    return data


def build(*more: str) -> tuple[ZSCL, Any]:
    """Method and data, read."""
    values, data = config(*more), data_of(*more)
    torch.manual_seed(0)
    method = build_method(values["method"], build_backbone(values["backbone"]), data.task)
    assert isinstance(method, ZSCL)
    return method, data


def disturb(method: ZSCL, size: float = 0.02) -> None:
    """Move the trained weights away from those of the copies."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def train(method: ZSCL, data: Any, steps: int, lr: float = 1e-3) -> list[dict[str, torch.Tensor]]:
    """AdamW as the runner takes it; the weights after every step."""
    optimizer = torch.optim.AdamW(method.parameter_groups(), lr=lr, weight_decay=0.0)
    loader, iterates = data.loader("train", batch_size=8), []
    method.train()
    for step, batch in zip(range(1, steps + 1), loader, strict=False):
        optimizer.zero_grad()
        method.training_loss(batch).backward()
        optimizer.step()
        iterates.append({name: p.detach().clone() for name, p in method.backbone.named_parameters()})
        method.after_step(step)
    return iterates

"""A small method that trains a coder of its own before the first step, and searches a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.methods.base import Context, Method
from transfer_run.methods.work import Rehearsed, Work
from transfer_run.task import Task


class Prepared(Method):
    """The head reads the backbone's features through a coder that was trained to reconstruct noisy ones."""

    def __init__(self, backbone: Backbone, task: Task, *, coder_steps: int = 40, rate: float = 0.01) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        self.coder_steps, self.rate = coder_steps, rate
        width = backbone.feature_width
        device = next(backbone.model.parameters()).device
        self.coder = nn.Sequential(
            nn.Linear(width, 4 * width, device=device), nn.Linear(4 * width, width, device=device)
        )
        self.register_buffer("scale", torch.zeros((), device=device))

    def prepare(self, context: Context) -> None:
        self.train_coder(context.work, lambda first: context.endless("train", context.batch_size, first))

    def rehearse(self, batch: Batch) -> Sequence[str]:
        self.train_coder(Rehearsed(), lambda first: repeat(batch))
        return ()

    def train_coder(self, work: Work, batches: Callable[[int], Iterator[Batch]]) -> None:
        optimizers = {"adam": torch.optim.Adam(self.coder.parameters(), lr=self.rate, foreach=False)}

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                features = super(Prepared, self).features(batch)
            return (self.coder(features + torch.randn_like(features)) - features).square().mean()

        def search(step: int) -> None:
            self.scale.add_(torch.rand(()))  # type: ignore[operator]

        work.fit(
            "coder", loss, batches, self.coder_steps, optimizers, {"coder": self.coder}, factor=lambda k: 1 / (1 + k)
        )
        work.loop("scale", search, 3, {"scale": self.scale})  # type: ignore[dict-item]

    def features(self, batch: Batch) -> Tensor:
        return self.scale * self.coder(super().features(batch))  # type: ignore[no-any-return, operator]

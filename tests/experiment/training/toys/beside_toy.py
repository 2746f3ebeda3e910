"""A small method that reads two data sets in every step."""

from __future__ import annotations

from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.methods.base import Method
from transfer_run.task import beside


class Consistent(Method):
    """The labelled loss, and the features of unlabelled images drawn together."""

    def loss(self, batch: Batch) -> Tensor:
        loss = super().loss(batch)
        if not self.training:
            return loss
        return loss + self.features(beside(batch, "unlabeled")).var(0).mean()

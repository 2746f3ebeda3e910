"""What methods share that judge instead of training: they score backbones and runs, or make a data set smaller."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.methods.base import Context, Method
from transfer_run.task import Task


class Judging(Method):
    """Base of the shapes `score` and `reshape`: the frozen backbone is looked through in `prepare`, which fills
    `results`; no step is taken, no model is tested or shipped, and `results` goes into result.json."""

    trains = False
    tests = False
    ships = "nothing"
    needs_backbone_gradient = False

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task, backbone_dropout=False)
        self.freeze_backbone(head=False)
        self.results: dict[str, Any] = {}

    def predict(self, batch: Batch) -> Tensor:
        """The head's input (B, D): nothing is predicted, and this is what one batch of a pass takes."""
        return self.features(batch)

    def conclude(self, context: Context) -> dict[str, Any]:
        return self.results

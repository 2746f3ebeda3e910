"""Full fine-tuning: everything is trained. The baseline that every saving is measured against."""

from __future__ import annotations

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.task import Task


class Full(Method):
    """All weights of the backbone and the head are trained; what no stack runs (CLIP's other tower) is not."""

    ships = "all"

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.train_backbone()

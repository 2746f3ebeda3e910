"""Full fine-tuning: everything is trained. The baseline that every saving is measured against."""

from __future__ import annotations

from transfer_run.backbones.base import Backbone
from transfer_run.data.task import Task
from transfer_run.methods.base import Method


class Full(Method):
    """All weights of the backbone and the head are trained."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.requires_grad_(True)

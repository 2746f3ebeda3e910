"""Pretraining: a backbone from random weights, trained as a whole; what it ships is a backbone for other runs."""

from __future__ import annotations

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.task import Task


class Pretrain(Method):
    """Everything is trained, from random weights (`about.pretrained: false`), and everything is shipped.

    A later run takes it by `backbone.weights="run:method=pretrain ..."` and makes its own head.
    """

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.requires_grad_(True)

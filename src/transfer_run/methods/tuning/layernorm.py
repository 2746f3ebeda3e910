"""Norm tuning: only the scales and shifts of normalisation layers are trained (Qi et al. 2022; Zhao et al. 2023)."""

from __future__ import annotations

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.methods.inside.targets import norms
from transfer_run.task import Task


class LayerNormTuning(Method):
    """Weights and biases of all norms of the pretrained model are trained, and the head.

    Batch norms go on gathering their running statistics, which are stored with the run.
    """

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        for norm in norms(backbone.model):
            norm.requires_grad_(True)
        self.freeze_idle()

"""Linear probing: the pretrained model as a fixed feature extractor, only the head is trained."""

from __future__ import annotations

import torch

from transfer_run.backbones.base import Backbone, State
from transfer_run.methods.base import Method
from transfer_run.task import Task


class LinearProbe(Method):
    """The head alone is trained; the backbone runs in eval mode and without gradient.

    Where the answer is text the head is the language head: it gets weights of its own (a copy of the token table
    where the two are tied) and these are trained. In retrieval the heads are both towers' projections.
    """

    needs_backbone_gradient = False

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task, backbone_dropout=False)
        self.freeze_backbone()
        for head in self.form.pretrained_heads(backbone):
            head.requires_grad_(True)

    def run(self, state: State) -> State:
        with torch.no_grad():
            return super().run(state)

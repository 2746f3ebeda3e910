"""Full fine-tuning: everything is trained. The baseline that every saving is measured against."""

from __future__ import annotations

from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.task import Task


class Full(Method):
    """All weights of the backbone and the head are trained; what no stack runs (CLIP's other tower) is not."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.requires_grad_(True)
        for parameter in backbone.idle_parameters(task):
            parameter.requires_grad_(False)

    def shipped(self) -> dict[str, Tensor]:
        """All of the model, so that it can serve as a backbone."""
        state = self.state_dict()
        names = {name for name, _ in (*self.named_parameters(), *self.named_buffers()) if name in state}
        return {name: state[name] for name in sorted(names)}

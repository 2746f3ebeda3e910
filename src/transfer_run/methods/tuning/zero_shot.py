"""Zero-shot: the pretrained model answers as it is, and is tested. What every adaptation must beat."""

from __future__ import annotations

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.task import Task


class ZeroShot(Method):
    """Nothing is trained and nothing is shipped: the pretrained head (of language, retrieval, forecasts) answers.

    Raises:
        UserError: the task asks for a fresh head, which knows nothing.
    """

    trains = False
    ships = "nothing"
    needs_backbone_gradient = False

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task, backbone_dropout=False)
        if not self.form.reader:
            raise UserError(
                f"A task of {task.form} is answered by a fresh head, which knows nothing without training.",
                where="method=zero_shot, dataset",
                remedy="choose method=linear_probe, or a data set of retrieval, language_modeling or forecasting",
            )
        self.freeze_backbone(head=False)

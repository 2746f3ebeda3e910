"""Fine-tuning where some classes are rare: weighted loss, copies of rare rows, from a coarse question to a fine one.

    image ──> trunk ──> pooled features ──> dropout ──> head ──> w[y] * cross-entropy

Behzadpour, Ortiz, Azizi, Wu, "Breast Tumor Classification Using EfficientNet Deep Learning Model", 2024, arXiv
2411.17870. What weighs classes (`dataset.class_weights`), tops up rare ones (`dataset.oversample`) and varies pictures
(`dataset.augment`) serves every method; here are what is left of it and the paper's values of them (the config). The
first stage asks benign or malignant, the second goes on from its trunk, with a new head, to the eight subtypes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.methods.base import Method
from transfer_run.methods.means import divisor
from transfer_run.task import Task


class BreastEffNet(Method):
    """All weights are trained, behind dropout before the head.

    Args:
        dropout: of the pooled features.
        reduction: what the weighted loss is divided by: `weights`, the sum of the batch's weights, as PyTorch does;
            `rows`, their number.
    """

    ships = "all"

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        dropout: float = 0.2,
        reduction: Literal["weights", "rows"] = "weights",
    ) -> None:
        super().__init__(backbone, task)
        self.train_backbone()
        self.dropout = nn.Dropout(dropout)
        self.reduction = reduction

    def features(self, batch: Batch) -> Tensor:
        """(B, feature_width)."""
        dropped: Tensor = self.dropout(super().features(batch))
        return dropped

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy of labels (B,) under logits (B, classes); plain in evaluation."""
        loss = super().task_loss(logits, labels)
        weights = self.task.class_weights
        if self.reduction == "weights" or not weights or not self.training:
            return loss
        known = labels != -100
        of_rows = logits.new_tensor(weights).float()[labels.clamp(min=0)] * known
        return loss * divisor(of_rows.sum()) / divisor(known.sum())

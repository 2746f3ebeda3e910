"""DARE with task arithmetic: theta = theta_0 + lambda * sum_i dropped(tau_i) (Yu et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.methods.merging.base import Common
from transfer_run.methods.merging.engine.stream import Job, Piece
from transfer_run.methods.merging.task_arithmetic import Scales, TaskArithmeticRule, TaskVectorMerging
from transfer_run.methods.merging.trimming.drop import Drop
from transfer_run.task import Task


class DareLinearRule(TaskArithmeticRule):
    """Task arithmetic on changes most of which are dropped at random and the rest rescaled."""

    def __init__(self, drop: Drop, scale: float | None = 0.4, weights: Sequence[float] | None = None) -> None:
        super().__init__(scale, weights)
        self.drop = drop

    def change(self, job: Job, piece: Piece, model: int, base: Tensor) -> Tensor:
        return self.drop(super().change(job, piece, model, base), piece, model)


class DareLinear(TaskVectorMerging):
    """Drops and rescales each task vector at random, then adds their sum, scaled, to the base.

    Args:
        drop_rate: p, the share of changes dropped.
        lambda_: lambda, or a list to search.
        weights: one factor a model; null: ones.
        others: see `Merging`. The run's seed is that of the masks.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        drop_rate: float = 0.9,
        lambda_: Scales = 0.4,
        weights: Sequence[float] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(backbone, task, lambda_, **common)
        self.drop_rate, self.weights = drop_rate, weights

    def rule(self, scale: float | None, seed: int) -> DareLinearRule:
        return DareLinearRule(Drop(self.drop_rate, seed), scale, self.weights)

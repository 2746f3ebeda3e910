"""Task arithmetic: theta = theta_0 + lambda * sum_i tau_i (Ilharco et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.methods.merging.base import Common
from transfer_run.methods.merging.engine.stream import Job, Place, model_weights
from transfer_run.methods.merging.task_vectors import Scales, TaskVectorMerging, TaskVectorRule
from transfer_run.task import Task


class TaskArithmeticRule(TaskVectorRule):
    """The sum of the task vectors, each times its weight (1; negative ones forget a task)."""

    def __init__(self, scale: float | None = 0.4, weights: Sequence[float] | None = None) -> None:
        super().__init__(scale)
        self.weights = weights

    def survey(self, job: Job) -> None:
        self.factors = model_weights(self.weights, job.count)

    def change(self, job: Job, place: Place, model: int, base: Tensor) -> Tensor:
        """tau_i at `place`, as it enters the sum."""
        return job.difference(place, model, base)

    def task_vector(self, job: Job, place: Place, base: Tensor) -> Tensor:
        total = self.change(job, place, 0, base).mul_(self.factors[0])
        for i in range(1, job.count):
            total.add_(self.change(job, place, i, base).mul_(self.factors[i]))
        return total


class TaskArithmetic(TaskVectorMerging):
    """Adds the sum of all task vectors, scaled, to the base.

    Args:
        lambda_: lambda, or a list to search; 1/n gives the average.
        weights: one factor a model; negative ones forget a task; null: ones.
        others: see `Merging`.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        lambda_: Scales = 0.4,
        weights: Sequence[float] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(backbone, task, lambda_, **common)
        self.weights = weights

    def rule(self, scale: float | None, seed: int) -> TaskArithmeticRule:
        return TaskArithmeticRule(scale, self.weights)

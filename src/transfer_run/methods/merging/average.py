"""Simple averaging: theta = mean_i theta_i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.base import Common, Merging, Option
from transfer_run.methods.merging.engine.stream import Job, Piece, Rule, model_weights
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.task import Task


class AverageRule(Rule):
    """The mean of the models, with `weights` the weighted mean. Needs no base."""

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = weights

    def check(self, job: Job) -> None:
        self.factors = model_weights(self.weights, job.count)
        if sum(self.factors) == 0:
            raise UserError(
                "Weights that sum to zero have no mean.",
                where=f"method.weights={self.weights}",
                remedy="give others; method=task_arithmetic takes one model's change from another",
            )

    def merge(self, job: Job, piece: Piece) -> Tensor:
        total = job.values(piece, 0).mul_(self.factors[0])
        for i in range(1, job.count):
            total.add_(job.values(piece, i).mul_(self.factors[i]))
        return total.div_(sum(self.factors))


class Average(Merging):
    """Every parameter's mean over the models.

    Args:
        weights: one factor a model, of a weighted mean; null: equal.
        others: see `Merging`.
    """

    needs_base = False

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        weights: Sequence[float] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(backbone, task, **common)
        self.weights = weights

    def options(self, job: Job, context: Context, tasks: Sequence[SourceTask]) -> list[Option]:
        return [Option({}, job, AverageRule(self.weights))]

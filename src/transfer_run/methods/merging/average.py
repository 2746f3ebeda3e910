"""Simple averaging: theta = mean_i theta_i."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from transfer_run.methods.merging.engine import Job, Place, Rule, model_weights


class AverageRule(Rule):
    """The mean of the models, with `weights` the weighted mean. Needs no base."""

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = weights

    def survey(self, job: Job) -> None:
        self.factors = model_weights(self.weights, job.count)

    def merge(self, job: Job, place: Place) -> Tensor:
        total = job.values(place, 0).mul_(self.factors[0])
        for i in range(1, job.count):
            total.add_(job.values(place, i).mul_(self.factors[i]))
        return total.div_(sum(self.factors))

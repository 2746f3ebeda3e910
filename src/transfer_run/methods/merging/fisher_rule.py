"""Fisher-weighted averaging on pieces (Matena and Raffel, section 3.2).

    theta[j] = sum_i c_i F_i[j] theta_i[j] / sum_i c_i F_i[j],   c_i = lambda_i or lambda_i / ||F_i||_2

computed as a running mean, theta <- (1 - r) theta + r theta_i with r = c_i F_i / (sum of c F up to i), so that a model
of weight zero changes nothing and a model that has all the weight is copied, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import Checkpoint
from transfer_run.methods.merging.engine.stream import Job, Place, Rule, SquareSum


class FisherRule(Rule):
    """The mode of the product of the models' Laplace posteriors; the first model is the target.

    Where all weights vanish the target's value stays; with a target coefficient of 0 the donors' plain weighted mean
    is taken there instead.

    Args:
        coefficients: lambda_i >= 0, one a model.
        fishers: diagonal Fishers, laid out like the models; None: isotropic merging (F = 1, no normalisation).
        floor: smallest Fisher value, applied to the raw values.
        favor_target: only the target's Fisher has the floor, so that it decides where all others vanish.
        normalize: divide each coefficient by the norm of the model's whole Fisher.
    """

    def __init__(
        self,
        coefficients: Sequence[float],
        fishers: Sequence[Checkpoint] | None,
        floor: float = 1e-6,
        favor_target: bool = True,
        normalize: bool = True,
    ) -> None:
        self.coefficients, self.fishers = [float(c) for c in coefficients], fishers
        self.floor, self.favor_target, self.normalize = floor, favor_target, normalize
        self.norms: list[float] = []

    def survey(self, job: Job) -> None:
        given = [len(self.coefficients), *([] if self.fishers is None else [len(self.fishers)])]
        if any(count != job.count for count in given) or min(self.coefficients) < 0 or not sum(self.coefficients):
            raise UserError(
                f"{job.count} models need as many coefficients of at least 0 and as many Fishers: {self.coefficients}.",
                where="method.coefficients",
                remedy="for example method.coefficients=[0.5,0.5]",
            )
        if self.fishers is not None:
            _check(job, self.fishers)
            if self.normalize and not self.norms:
                self.norms = [_norm(job, fisher) for fisher in self.fishers]

    def merge(self, job: Job, place: Place) -> Tensor:
        merged = job.values(place, 0)
        weight = self._weight(job, place, 0, merged)
        for i in range(1, job.count):
            added = self._weight(job, place, i, merged)
            weight.add_(added)
            share = added.div_(weight).nan_to_num_(0.0)  # 0 / 0: nobody so far knows anything about this value
            merged.mul_(1 - share).add_(job.values(place, i).mul_(share))
        unknown = weight == 0
        if self.coefficients[0] == 0 and bool(unknown.any()):
            merged = torch.where(unknown, self._plain_mean(job, place), merged)
        return merged

    def _weight(self, job: Job, place: Place, model: int, like: Tensor) -> Tensor:
        """c_i F_i at `place`."""
        coefficient = self.coefficients[model]
        if self.fishers is None:
            return torch.full_like(like, coefficient)
        fisher = self.fishers[model].read(place.name, place.start, place.stop).to(job.dtype)
        if model == 0 or not self.favor_target:
            fisher.clamp_(min=self.floor)
        return fisher.mul_(coefficient / self.norms[model] if self.normalize else coefficient)

    def _plain_mean(self, job: Job, place: Place) -> Tensor:
        total = job.values(place, 0).mul_(self.coefficients[0])
        for i in range(1, job.count):
            total.add_(job.values(place, i).mul_(self.coefficients[i]))
        return total.div_(sum(self.coefficients))


def _check(job: Job, fishers: Sequence[Checkpoint]) -> None:
    wrong = [
        f"{name} in {fisher.where}"
        for fisher in fishers
        for name, entry in job.layout.merged.items()
        if name not in fisher.entries or fisher.entries[name].shape != entry.shape
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} Fisher tensors are missing or of another shape than the models'.",
            where="\n           ".join(wrong),
            remedy="compute the Fisher with the same model, or leave the tensors out: method.exclude=[...]",
        )


def _norm(job: Job, fisher: Checkpoint) -> float:
    """||F_i||_2 over all that is merged; told by the file where it holds just that.

    Raises:
        UserError: it is zero.
    """
    if "norm" in fisher.metadata and fisher.entries.keys() == job.layout.merged.keys():
        return float(fisher.metadata["norm"])
    total = SquareSum()
    for place in job.all_places():
        total.add(fisher.read(place.name, place.start, place.stop).to(job.dtype))
    if not total.value > 0:
        raise UserError(
            "A Fisher that is zero everywhere cannot be normalised.",
            where=fisher.where,
            remedy="method.normalize=false, or a Fisher of more examples",
        )
    return float(total.value**0.5)

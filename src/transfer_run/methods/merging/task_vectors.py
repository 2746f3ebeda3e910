"""What every rule on task vectors shares: theta = theta_0 + lambda * tau_m, with tau_m made of tau_i = theta_i - theta_0."""

from __future__ import annotations

from torch import Tensor

from transfer_run.methods.merging.engine import Job, Place, Rule


class TaskVectorRule(Rule):
    """Base of the rules that merge task vectors.

    Args:
        scale: lambda; None merges to tau_m itself, for a search that merges once and scales often.
    """

    def __init__(self, scale: float | None = 1.0) -> None:
        self.scale = scale

    def task_vector(self, job: Job, place: Place, base: Tensor) -> Tensor:
        """tau_m at `place`."""
        raise NotImplementedError(f"{type(self).__name__} does not merge task vectors")

    def merge(self, job: Job, place: Place) -> Tensor:
        base = job.base_values(place)
        merged = self.task_vector(job, place, base)
        return merged if self.scale is None else merged.mul_(self.scale).add_(base)


class Scaled(Rule):
    """theta_0 + lambda * tau_m from a stored tau_m, the job's only model: to the bit what merging with lambda gives."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def merge(self, job: Job, place: Place) -> Tensor:
        return job.values(place, 0).mul_(self.scale).add_(job.base_values(place))

"""Task arithmetic, theta = theta_0 + lambda * sum_i tau_i, and what all rules on task vectors share.

tau_i = theta_i - theta_0, theta = theta_0 + lambda * tau_m with tau_m made of all tau_i (Ilharco et al., ICLR 2023).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.base import Common, Merging, Option
from transfer_run.methods.merging.engine.checkpoint import Entry, open_checkpoint
from transfer_run.methods.merging.engine.stream import TASK_VECTOR, Job, Piece, Rule, merge_tensors, model_weights
from transfer_run.methods.merging.engine.writer import CheckpointWriter
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.run_folder import CHECKPOINTS
from transfer_run.task import Task

Scales = float | Sequence[float]


class TaskVectorRule(Rule):
    """Base of the rules that merge task vectors.

    Args:
        scale: lambda; None merges to tau_m itself, for a search that merges once and scales often.
    """

    def __init__(self, scale: float | None = 1.0) -> None:
        self.scale = scale

    @abstractmethod
    def task_vector(self, job: Job, piece: Piece, base: Tensor) -> Tensor:
        """tau_m at `piece`."""

    def merge(self, job: Job, piece: Piece) -> Tensor:
        base = job.base_values(piece)
        merged = self.task_vector(job, piece, base)
        return merged if self.scale is None else merged.mul_(self.scale).add_(base)


class Scaled(Rule):
    """theta_0 + lambda * tau_m from a stored tau_m, the job's only model: to the bit what merging with lambda gives."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def merge(self, job: Job, piece: Piece) -> Tensor:
        return job.values(piece, 0).mul_(self.scale).add_(job.base_values(piece))


class TaskVectorMerging(Merging):
    """Base of the methods on task vectors; a list of lambdas is searched with one merge.

    Args:
        lambda_: lambda or a list of them.
        others: see `Merging`.
    """

    def __init__(self, backbone: Backbone | None, task: Task | None, lambda_: Scales, **common: Unpack[Common]) -> None:
        super().__init__(backbone, task, **common)
        scales = list(lambda_) if isinstance(lambda_, Sequence) and not isinstance(lambda_, str) else [lambda_]
        numbers = (isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s) for s in scales)
        if not scales or not all(numbers):
            raise UserError(
                f"{lambda_!r} is neither a finite number nor a list of them.",
                where="method.lambda",
                remedy="method.lambda=1.0, or a search over validation data: method.lambda=[0.8,1.0,1.2]",
            )
        self.scales = [float(scale) for scale in scales]

    @abstractmethod
    def rule(self, scale: float | None, seed: int) -> TaskVectorRule:
        """The rule of this method with lambda = `scale`."""

    def options(self, job: Job, context: Context, tasks: Sequence[SourceTask]) -> list[Option]:
        if len(self.scales) == 1 or not tasks:
            return [Option({"lambda": s}, job, self.rule(s, context.seed)) for s in self.scales]
        folder = context.folder / CHECKPOINTS / TASK_VECTOR
        stored = job.replaced([store_task_vector(job, self.rule(None, context.seed), folder)])
        return [Option({"lambda": scale}, stored, Scaled(scale)) for scale in self.scales]


def store_task_vector(job: Job, rule: TaskVectorRule, folder: Path) -> Any:
    """tau_m as a checkpoint in the dtype of the arithmetic."""
    entries = {name: Entry(job.dtype, entry.shape) for name, entry in job.layout.merged.items()}
    tied = {other: entries[name] for name, others in job.layout.tied.items() for other in others}
    with CheckpointWriter(folder, entries | tied) as writer:
        merge_tensors(job, rule, writer)
    return open_checkpoint(folder)


class TaskArithmeticRule(TaskVectorRule):
    """The sum of the task vectors, each times its weight (1; negative ones forget a task)."""

    def __init__(self, scale: float | None = 0.4, weights: Sequence[float] | None = None) -> None:
        super().__init__(scale)
        self.weights = weights

    def check(self, job: Job) -> None:
        self.factors = model_weights(self.weights, job.count)

    def change(self, job: Job, piece: Piece, model: int, base: Tensor) -> Tensor:
        """tau_i at `piece`, as it enters the sum."""
        return job.difference(piece, model, base)

    def task_vector(self, job: Job, piece: Piece, base: Tensor) -> Tensor:
        total = self.change(job, piece, 0, base).mul_(self.factors[0])
        for i in range(1, job.count):
            total.add_(self.change(job, piece, i, base).mul_(self.factors[i]))
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

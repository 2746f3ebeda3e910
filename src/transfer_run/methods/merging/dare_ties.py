"""DARE with TIES: dropped and rescaled changes, then election and disjoint merge without magnitude trimming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.methods.merging.base import Common
from transfer_run.methods.merging.engine.stream import Job, Piece
from transfer_run.methods.merging.task_arithmetic import Scales, TaskVectorMerging
from transfer_run.methods.merging.ties import Merge, Resolve, TiesRule
from transfer_run.methods.merging.trimming.drop import Drop
from transfer_run.task import Task


class DareTiesRule(TiesRule):
    """TIES whose first step drops changes at random instead of the smallest ones."""

    def __init__(
        self,
        drop: Drop,
        scale: float | None = 1.0,
        resolve: Resolve = "mass",
        merge: Merge = "dis-mean",
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(scale, keep=1.0, resolve=resolve, merge=merge, weights=weights)
        self.drop = drop

    def trimmed(self, job: Job, piece: Piece, base: Tensor) -> list[Tensor]:
        return [self.drop(row, piece, i) for i, row in enumerate(super().trimmed(job, piece, base))]


class DareTies(TaskVectorMerging):
    """Drops and rescales each task vector at random, elects signs, merges what agrees.

    Args:
        drop_rate: p, the share of changes dropped.
        lambda_: lambda, or a list to search.
        resolve, merge, weights: as in `Ties`.
        others: see `Merging`. The run's seed is that of the masks.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        drop_rate: float = 0.9,
        resolve: Resolve = "mass",
        merge: Merge = "dis-mean",
        lambda_: Scales = 1.0,
        weights: Sequence[float] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(backbone, task, lambda_, **common)
        self.drop_rate, self.weights = drop_rate, weights
        self.resolve, self.elect_merge = resolve, merge

    def rule(self, scale: float | None, seed: int) -> DareTiesRule:
        return DareTiesRule(Drop(self.drop_rate, seed), scale, self.resolve, self.elect_merge, self.weights)

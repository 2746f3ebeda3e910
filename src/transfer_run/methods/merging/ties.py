"""TIES-Merging: trim each task vector, elect one sign a parameter, merge the changes that agree with it.

Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
arXiv 2306.01708, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.base import Common
from transfer_run.methods.merging.engine.stream import Job, Piece, SquareSum, model_weights
from transfer_run.methods.merging.task_arithmetic import Scales, TaskVectorMerging, TaskVectorRule
from transfer_run.methods.merging.trimming.trim import Trim
from transfer_run.task import Task

Scope = Literal["global", "tensor"]
Threshold = Literal["kth", "exact"]
Resolve = Literal["mass", "normfrac", "normmass", "none"]
Merge = Literal["dis-mean", "dis-sum", "dis-max", "mean", "sum"]


class TiesRule(TaskVectorRule):
    """Keep the largest changes of each model, elect one sign per parameter, merge what agrees with it.

    Args:
        scale: lambda.
        keep: q, the share of each task vector that is kept; 1 trims nothing.
        scope: threshold over the whole model (`global`) or each tensor (`tensor`).
        threshold: `kth` keeps |tau| >= the r-th smallest with r = d - int(d q), hence int(d q) + 1 entries and all that
            tie with the last; `exact` keeps int(d q), earlier positions first where magnitudes tie.
        resolve: whose sign wins: `mass` (the summed change), `normfrac` (the model with the largest share
            T^2 / ||T||^2), `normmass` (the signed sum of these shares), `none`.
        merge: `dis-mean`, `dis-sum`, `dis-max` over the entries of the elected sign (over all non-zero ones without
            election), or plain `mean`, `sum` over all models, for which no sign is elected (`resolve` does nothing).
        weights: factors after the election: of a weighted mean, of the sum's terms, of the magnitudes in `dis-max`.
    """

    def __init__(
        self,
        scale: float | None = 1.0,
        keep: float = 0.2,
        scope: Scope = "global",
        threshold: Threshold = "kth",
        resolve: Resolve = "mass",
        merge: Merge = "dis-mean",
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(scale)
        if not 0 < keep <= 1:
            raise UserError(
                f"keep={keep} is no share of the changes.",
                where="method.keep",
                remedy="20 % are written method.keep=0.2",
            )
        if resolve == "none" and merge == "dis-max":
            raise UserError(
                "dis-max takes the largest change of the elected sign, and resolve=none elects none.",
                where="method.resolve, method.merge",
                remedy="method.resolve=mass, or method.merge=dis-mean or dis-sum",
            )
        self.trim = Trim(keep, scope, threshold)
        self.resolve, self.rule, self.weights = resolve, merge, weights
        self.majority: float | None = None
        self._balance = 0
        self._cancelled: list[Piece] = []

    # ---- before the merge
    def check(self, job: Job) -> None:
        self.factors = model_weights(self.weights, job.count)

    def survey(self, job: Job) -> None:
        super().survey(job)
        self.majority, self._balance, self._cancelled = None, 0, []
        self.trim.survey(job)
        self.norms = self._square_norms(job) if self.resolve in ("normfrac", "normmass") else []

    def _square_norms(self, job: Job) -> list[float]:
        """||T_i||^2 of the trimmed task vectors; 1 for a model that changed nothing (its shares are 0, not NaN)."""
        sums = [SquareSum() for _ in job.models]
        for piece in job.all_pieces():
            for total, row in zip(sums, self.trimmed(job, piece, job.base_values(piece)), strict=True):
                total.add(row)
        return [total.value or 1.0 for total in sums]

    # ---- one piece
    def trimmed(self, job: Job, piece: Piece, base: Tensor) -> list[Tensor]:
        """T: the trimmed task vectors at `piece`."""
        return self.trim(job, piece, [job.difference(piece, i, base) for i in range(job.count)])

    def task_vector(self, job: Job, piece: Piece, base: Tensor) -> Tensor:
        rows = self.trimmed(job, piece, base)
        if self.rule in ("mean", "sum") or self.resolve == "none":
            return self._merge_all(rows)
        signs = self.elect(rows)
        return self._merge_agreeing(rows, self._settled(signs, rows, piece))

    def elect(self, rows: list[Tensor]) -> Tensor:
        """Signs of one piece, 0 where the models cancel out."""
        if self.resolve == "mass":
            total = rows[0].clone()
            for row in rows[1:]:
                total.add_(row)
            return total.sign_()
        if self.resolve == "normmass":
            total = torch.zeros_like(rows[0])
            for row, norm in zip(rows, self.norms, strict=True):
                total.add_(row.square().div_(norm).copysign_(row))
            return total.sign_()
        best, winner = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        for row, norm in zip(rows, self.norms, strict=True):
            share = row.square().div_(norm)
            torch.where(share > best, row, winner, out=winner)
            torch.maximum(share, best, out=best)
        return winner.sign_()

    def _settled(self, signs: Tensor, rows: list[Tensor], piece: Piece) -> Tensor:
        """The signs with zeros replaced by the majority; before that is known, a piece that needs it is noted."""
        open_ = signs == 0
        if self.majority is not None:
            return signs.masked_fill_(open_, self.majority)
        self._balance += int(signs.sum(dtype=torch.float64))
        if bool((open_ & _changed(rows)).any()):
            self._cancelled.append(piece)
        return signs

    def unsettled(self) -> Iterable[Piece]:
        """Places where changes cancel out: now that all signs are counted, the global majority decides there."""
        self.majority = float((self._balance > 0) - (self._balance < 0))
        return self._cancelled if self.majority else ()

    def _merge_agreeing(self, rows: list[Tensor], signs: Tensor) -> Tensor:
        """Aggregate the entries of the elected sign; a sign of 0 selects the negative ones."""
        side = torch.gt(signs, 0, out=torch.empty_like(signs)).mul_(2).sub_(1)
        total, count, one = torch.zeros_like(signs), torch.zeros_like(signs), torch.empty_like(signs)
        for row, factor in zip(rows, self.factors, strict=True):
            agreeing = row.mul_(side).clamp_(min=0)  # magnitudes of what agrees, 0 elsewhere
            if self.rule == "dis-mean":
                count.add_(torch.gt(agreeing, 0, out=one).mul_(factor))
            agreeing.mul_(factor)
            total = torch.maximum(total, agreeing, out=total) if self.rule == "dis-max" else total.add_(agreeing)
        if self.rule == "dis-max":
            return total.mul_(signs)
        if self.rule == "dis-mean":
            total.div_(count.add_(torch.eq(count, 0, out=one)))
        return total.mul_(side)

    def _merge_all(self, rows: list[Tensor]) -> Tensor:
        """Aggregate without election."""
        total, count, one = torch.zeros_like(rows[0]), torch.zeros_like(rows[0]), torch.empty_like(rows[0])
        for row, factor in zip(rows, self.factors, strict=True):
            if self.rule == "dis-mean":
                count.add_(torch.ne(row, 0, out=one).mul_(factor))
            total.add_(row.mul_(factor))
        if self.rule == "mean":
            return total.div_(sum(self.factors))
        return total.div_(count.add_(torch.eq(count, 0, out=one))) if self.rule == "dis-mean" else total


def _changed(rows: list[Tensor]) -> Tensor:
    """Where any row is not zero: their bits together, without the sign."""
    integer = torch.int32 if rows[0].dtype == torch.float32 else torch.int64
    bits = rows[0].view(integer).clone()
    for row in rows[1:]:
        bits.bitwise_or_(row.view(integer))
    return bits.bitwise_and_(torch.iinfo(integer).max) != 0


class Ties(TaskVectorMerging):
    """Merges models fine-tuned from one checkpoint; needs no data and no training.

    Args:
        keep, scope, threshold, resolve, merge, weights: see `TiesRule`.
        lambda_: lambda, or a list to search; the best mean validation score wins.
        others: see `Merging`.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        keep: float = 0.2,
        scope: Scope = "global",
        threshold: Threshold = "kth",
        resolve: Resolve = "mass",
        merge: Merge = "dis-mean",
        lambda_: Scales = 1.0,
        weights: Sequence[float] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(backbone, task, lambda_, **common)
        self.keep, self.scope, self.threshold = keep, scope, threshold
        self.resolve, self.elect_merge, self.weights = resolve, merge, weights

    def prepare(self, context: Context) -> None:
        if self.elect_merge in ("mean", "sum") and self.resolve != "none":
            context.log(
                f"method.merge={self.elect_merge} takes every model's changes, whatever their sign: none is elected, "
                f"and method.resolve={self.resolve} does nothing (dis-{self.elect_merge}: those of the elected sign)"
            )
        super().prepare(context)

    def rule(self, scale: float | None, seed: int) -> TiesRule:
        return TiesRule(scale, self.keep, self.scope, self.threshold, self.resolve, self.elect_merge, self.weights)

"""The first step of TIES: of each task vector only the largest changes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.stream import Job, Piece
from transfer_run.methods.merging.trimming.rank_select import RankSelect


@dataclass(frozen=True)
class Cut:
    """Magnitudes above `value` stay; of those equal to it all (`ties` None) or the first `ties` in flat order."""

    value: float
    ties: int | None = None


class Trim:
    """Zeroes what is below each model's threshold, piece by piece; see `TiesRule` for the arguments."""

    def __init__(self, keep: float, scope: str, threshold: str) -> None:
        self.keep, self.scope, self.threshold = keep, scope, threshold
        self._cuts: tuple[str | None, list[Cut]] = (None, [])
        self._seen: list[int] = []
        self._before: dict[Piece, list[int]] = {}

    def survey(self, job: Job) -> None:
        """Find the thresholds of whole models; those of single tensors are found as each is met."""
        self._before.clear()
        self._cuts = (None, [])
        if self.keep < 1 and self.scope == "global":
            self._find(job, None)

    @property
    def cuts(self) -> list[Cut]:
        """The present cuts, one a model; none where nothing is trimmed."""
        return self._cuts[1]

    def __call__(self, job: Job, piece: Piece, rows: list[Tensor]) -> list[Tensor]:
        """The task vectors at `piece`, trimmed in place."""
        if self.keep >= 1:
            return rows
        if self.scope == "tensor" and self._cuts[0] != piece.name:
            self._find(job, piece.name)
        before = self._before.setdefault(piece, list(self._seen)) if self.threshold == "exact" else []
        for i, (row, cut) in enumerate(zip(rows, self._cuts[1], strict=True)):
            if cut.ties is None:
                if cut.value > 0:  # keeping what is above the number just below the cut takes one pass, not three
                    torch.hardshrink(row, _just_below(cut.value, row.dtype), out=row)
            else:
                magnitude = row.abs()
                ties = magnitude == cut.value
                self._seen[i] = before[i] + int(ties.sum())
                late = ties & (ties.cumsum(0) + before[i] > cut.ties)
                row.masked_fill_((magnitude < cut.value) | late, 0)
        return rows

    def _find(self, job: Job, name: str | None) -> None:
        """The cuts of one tensor, or of all together (`name` None)."""
        names = list(job.layout.merged) if name is None else [name]
        numel = sum(job.layout.merged[each].numel for each in names)
        kept = int(numel * self.keep)
        rank = numel - kept + (1 if self.threshold == "exact" else 0)
        self._seen = [0] * job.count
        if rank > numel:  # exactly none
            self._cuts = (name, [Cut(float("inf"), 0)] * job.count)
        else:
            selects = _select(job, names, rank)
            exact = self.threshold == "exact"
            cuts = [Cut(s.value, kept - (numel - s.below - s.equal) if exact else None) for s in selects]
            self._cuts = (name, cuts)


def _select(job: Job, names: Sequence[str], rank: int) -> list[RankSelect]:
    """The `rank`-th smallest magnitude of each task vector; the base is read once a pass for all models."""
    selects = [RankSelect(rank, job.dtype) for _ in job.models]
    while not selects[0].done:
        for name in names:
            for piece in job.pieces(name):
                base = job.base_values(piece)
                for i, select in enumerate(selects):
                    select.add(job.difference(piece, i, base))
            for i, select in enumerate(selects):
                if select.not_finite:
                    raise UserError(
                        f"{name} has changes that are not finite numbers.",
                        where=job.models[i].where,
                        remedy=f"leave the tensor as it is in the base: method.exclude=['{name}']",
                    )
        for select in selects:
            select.narrow()
    return selects


def _just_below(value: float, dtype: torch.dtype) -> float:
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(0.0, dtype=dtype)))

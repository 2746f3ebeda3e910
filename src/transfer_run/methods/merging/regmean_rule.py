"""RegMean on pieces: linear layers by least squares on their inputs, everything else averaged.

W = (sum_i G_i)^-1 sum_i G_i W_i,   G_i = X_i^T X_i / rows of X_i,   off-diagonal entries of G_i times a
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.checkpoint import Checkpoint
from transfer_run.methods.merging.engine.stream import Job, Place

ROWS = 256  # outputs solved at a time; fixed, so that the piece size does not change the matrix products


class RegMeanRule(AverageRule):
    """Least squares for the weights that have a Gram matrix in every file, the plain mean for the rest.

    Args:
        grams: per model, G_i (in, in) under the name of the weight; `transposed` names have (in, out) weights.
        off_diagonal: a, 0 < a <= 1.
        ridge: added to every diagonal, times the mean of all: what no model sees is averaged, not divided by zero.
        transposed: weights stored (in, out), as in GPT-2's Conv1D; all others are (out, in).
    """

    def __init__(
        self,
        grams: Sequence[Checkpoint],
        off_diagonal: float = 0.9,
        ridge: float = 1e-8,
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        if not 0 < off_diagonal <= 1:
            raise UserError(
                f"off_diagonal={off_diagonal} is not above 0 and at most 1.", where="method.off_diagonal", remedy="0.9"
            )
        self.grams, self.off_diagonal, self.ridge, self.transposed = grams, off_diagonal, ridge, transposed
        self._prepared: tuple[str, list[Tensor], Tensor] | None = None

    def survey(self, job: Job) -> None:
        super().survey(job)
        if len(self.grams) != job.count:
            raise UserError(
                f"There are {job.count} models and {len(self.grams)} files of Gram matrices.",
                where="method.grams",
                remedy="one file a model, or sources with data to compute them from",
            )
        for name in sorted(set(self.grams[0].entries) & set(job.layout.merged)):
            wide = job.layout.merged[name].shape[0 if name in self.transposed else -1]
            odd = [g.where for g in self.grams if name not in g.entries or g.entries[name].shape != (wide, wide)]
            if odd:
                raise UserError(f"The Gram matrix of {name!r} is missing or not {wide} x {wide} in {', '.join(odd)}.")

    def _linear(self, name: str) -> bool:
        return name in self.grams[0].entries

    def step(self, job: Job, name: str) -> int | None:
        shape = job.layout.merged[name].shape
        if not self._linear(name):
            return None
        return job.layout.merged[name].numel if name in self.transposed else ROWS * shape[1]

    def merge(self, job: Job, place: Place) -> Tensor:
        if not self._linear(place.name):
            return super().merge(job, place)
        grams, factor = self._factor(place.name)
        width = grams[0].shape[0]
        total = torch.zeros((), dtype=torch.float64)
        for i, gram in enumerate(grams):
            weight = job.values(place, i).to(torch.float64)
            rows = weight.view(width, -1).T if place.name in self.transposed else weight.view(-1, width)
            total = total + rows @ gram  # (out, in): the transpose of G_i W_i
        solved = torch.cholesky_solve(total.T, factor)  # (in, out)
        flat = solved if place.name in self.transposed else solved.T
        return flat.to(job.dtype).reshape(-1)

    def _factor(self, name: str) -> tuple[list[Tensor], Tensor]:
        """G_i with scaled off-diagonals, and the Cholesky factor of their sum, in float64; kept for the next piece."""
        if self._prepared is None or self._prepared[0] != name:
            self._prepared = None
            grams = [self._gram(checkpoint, name) for checkpoint in self.grams]
            diagonals = torch.stack([gram.diagonal() for gram in grams])
            for gram in grams:  # the same for all, so that what nobody sees gets equal weights
                gram.diagonal().add_(self.ridge * (float(diagonals.mean()) or 1.0))
            self._prepared = (name, grams, torch.linalg.cholesky(torch.stack(grams).sum(0)))
        return self._prepared[1], self._prepared[2]

    def _gram(self, checkpoint: Checkpoint, name: str) -> Tensor:
        entry = checkpoint.entries[name]
        gram = checkpoint.read(name, 0, entry.numel).view(entry.shape).to(torch.float64)
        diagonal = gram.diagonal().clone()
        gram.mul_(self.off_diagonal)
        gram.diagonal().copy_(diagonal)
        return gram

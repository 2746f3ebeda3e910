"""RegMean: linear layers by least squares on every model's own inputs, everything else averaged.

W = (sum_i G_i)^-1 sum_i G_i W_i,   G_i = X_i^T X_i / rows of X_i,   off-diagonal entries of G_i times a

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.base import Common, Merging, Option
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, open_checkpoint
from transfer_run.methods.merging.engine.opening import local_path
from transfer_run.methods.merging.engine.stream import Job, Piece
from transfer_run.methods.merging.runs.bodies import plain_model
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.methods.merging.statistics.examples import single_examples
from transfer_run.methods.merging.statistics.gram import TRANSPOSED, gather_grams, save_grams
from transfer_run.methods.work import as_loaded
from transfer_run.run_folder import CHECKPOINTS
from transfer_run.task import Task

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

    def check(self, job: Job) -> None:
        super().check(job)
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

    def merge(self, job: Job, piece: Piece) -> Tensor:
        if not self._linear(piece.name):
            return super().merge(job, piece)
        grams, factor = self._factor(piece.name)
        width = grams[0].shape[0]
        total = torch.zeros((), dtype=torch.float64)
        for i, gram in enumerate(grams):
            weight = job.values(piece, i).to(torch.float64)
            rows = weight.view(width, -1).T if piece.name in self.transposed else weight.view(-1, width)
            total = total + rows @ gram  # (out, in): the transpose of G_i W_i
        solved = torch.cholesky_solve(total.T, factor)  # (in, out)
        flat = solved if piece.name in self.transposed else solved.T
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

    def close(self) -> None:
        self._prepared = None

    def _gram(self, checkpoint: Checkpoint, name: str) -> Tensor:
        entry = checkpoint.entries[name]
        gram = checkpoint.read(name, 0, entry.numel).view(entry.shape).to(torch.float64)
        diagonal = gram.diagonal().clone()
        gram.mul_(self.off_diagonal)
        gram.diagonal().copy_(diagonal)
        return gram


class RegMean(Merging):
    """Least squares for linear layers, the mean for everything else.

    Args:
        examples: of each source's training split, for its Gram matrices.
        off_diagonal: a, what the off-diagonal entries of the Gram matrices are multiplied by, 0 < a <= 1.
        ridge: added to their diagonals, relative to its mean.
        grams: files of Gram matrices, one a model, where there are no sources to compute them from.
        others: see `Merging`.
    """

    needs_base = False

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        examples: int = 1000,
        off_diagonal: float = 0.9,
        ridge: float = 1e-8,
        grams: Sequence[str] = (),
        **common: Unpack[Common],
    ) -> None:
        super().__init__(backbone, task, **common)
        self.examples, self.off_diagonal, self.ridge, self.grams = examples, off_diagonal, ridge, list(grams)

    def options(self, job: Job, context: Context, tasks: Sequence[SourceTask]) -> list[Option]:
        found: list[Checkpoint] = [self._gram(task, context) for task in tasks]
        found += [open_checkpoint(local_path(path)) for path in self.grams]
        if not found:
            raise UserError(
                "RegMean needs the inputs that each model sees.",
                where="method.grams, sources",
                remedy="merge finished runs (sources=...), or name files of Gram matrices: method.grams=[FILE,FILE]",
            )
        flipped = frozenset(json.loads(found[0].metadata.get(TRANSPOSED, "[]")))
        return [Option({}, job, RegMeanRule(found, self.off_diagonal, self.ridge, flipped))]

    def rehearse_source(self, batch: Batch) -> Sequence[str]:
        """A source's model and its Gram matrices: a layer's product lies beside its sum from the second example on."""
        if self.grams:
            return ()
        source = as_loaded(self)
        model, example = self.backbone.model, self.form.example(batch, 0)
        gather_grams(model, self, [example, example])
        del source
        return ["the least squares of one layer at a time: a Gram matrix a source in float64, on the CPU"]

    def pieces_at_once(self, models: int) -> int | None:
        return None

    def _gram(self, task: SourceTask, context: Context) -> Checkpoint:
        """The Gram matrices of a source on its own training data, kept beside its checkpoint."""
        path: Path = task.folder / CHECKPOINTS / f"gram-{self.examples}.safetensors"
        if not path.is_file():
            method = plain_model(task, context)
            device = next(method.backbone.model.parameters()).device
            single = single_examples(task.batches("train", device), self.examples, method.form.example)
            examples = context.work.follow(f"Gram matrices of {task.name}", single, self.examples)
            context.log(f"Gram matrices of {task.name} from {self.examples} examples")
            model = method.backbone.model
            save_grams(gather_grams(model, method, examples), model, path)
        return open_checkpoint(path)

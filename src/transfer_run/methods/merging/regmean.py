"""RegMean: linear layers that agree with every model on that model's own inputs (Jin et al., ICLR 2023)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.base import Common, Merging, Option
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, open_checkpoint
from transfer_run.methods.merging.engine.opening import local_path
from transfer_run.methods.merging.engine.stream import Job
from transfer_run.methods.merging.regmean_rule import RegMeanRule
from transfer_run.methods.merging.runs.bodies import plain_model
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.methods.merging.statistics.examples import single_examples
from transfer_run.methods.merging.statistics.gram import TRANSPOSED, gather_grams, save_grams
from transfer_run.task import Task


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
        """A source's model and the Gram matrices of one example."""
        if self.grams:
            return ()
        source = [parameter.clone() for parameter in self.parameters()]
        model, example = self.backbone.model, {name: tensor[:1] for name, tensor in batch.items()}
        gather_grams(model, self, [example])
        del source
        return ["the least squares of one layer at a time: a Gram matrix a source in float64, on the CPU"]

    def bytes_for_files(self, models: int) -> int | None:
        return None

    def _gram(self, task: SourceTask, context: Context) -> Checkpoint:
        """The Gram matrices of a source on its own training data, kept beside its checkpoint."""
        path: Path = task.folder / "checkpoints" / f"gram-{self.examples}.safetensors"
        if not path.is_file():
            method = plain_model(task, context)
            device = next(method.backbone.model.parameters()).device
            examples = single_examples(task.batches("train", device), self.examples)
            context.log(f"Gram matrices of {task.name} from {self.examples} examples")
            model = method.backbone.model
            save_grams(gather_grams(model, method, examples), model, path)
        return open_checkpoint(path)

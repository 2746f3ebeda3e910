"""Out of memory in a training step: `trainer.oom=halve` does it again in smaller parts, with the same batch behind it.

    step ──> loss, gradients of the batch ──> update
     └─ out of memory ──> gradients dropped, as many parts again ──> loss and gradients part by part ──> update

A part's loss counts by its rows. Where losses are means over rows that is the batch's own loss; where they are means
over tokens it is the sum that `trainer.accumulate` makes. Later batches stay in as many parts, in a run that is gone on
with, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.experiment.record.log import LOG
from transfer_run.methods.base import Method

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class Parts:
    """How many parts each batch is trained on in.

    Args:
        halve: go on in smaller parts; False: out of memory ends the run.
    """

    def __init__(self, halve: bool) -> None:
        self.halve, self.count = halve, 1

    def careful(self, closure: Callable[[], Any] | None, again: Callable[[], None], rows: int) -> Any:
        """The same closure, which is called again in more parts where memory does not suffice.

        Args:
            again: what is done before that.
            rows: of the batch.
        """
        if closure is None or not self.halve:
            return closure

        def tried() -> Any:
            while True:
                try:
                    return closure()
                except RuntimeError as error:  # what was computed so far lives until this block ends
                    if not any(words in str(error).lower() for words in OUT_OF_MEMORY) or self.count >= rows:
                        raise
                self.count = min(2 * self.count, rows)
                LOG.warning(
                    "out of memory: batches of %d rows are trained on in %d parts from here on", rows, self.count
                )
                torch.cuda.empty_cache()
                again()

        return tried

    def of(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """The parts of a batch, nearly equal, each with its share of the rows."""
        rows = len(next(iter(batch.values())))
        sizes = [len(part) for part in torch.arange(rows).tensor_split(min(self.count, rows))]
        first = 0
        for size in sizes:
            yield {name: tensor[first : first + size] for name, tensor in batch.items()}, size / rows
            first += size


def check_halving(method: Method, config: Mapping[str, Any]) -> None:
    """Can the batches of this run be trained on in parts?

    Raises:
        UserError: `trainer.oom=halve` was asked for, and they cannot.
    """
    if config["trainer"]["oom"] != "halve":
        return
    hardware = config["hardware"]
    why = ""
    if config["trainer"]["accumulate"] > 1:
        why = "trainer.accumulate sums the gradients of several batches already"
    elif hardware["devices"] * hardware["nodes"] > 1:
        why = "several devices take each step together"
    elif method.own_steps:
        why = f"method={config['method']['name']} takes its steps itself"
    elif config["dataset"].get("beside"):
        why = "every step reads several data sets"
    elif method.form.paired or method.couples_rows:
        why = "every row is compared with all rows of its batch"
    elif any(isinstance(m, _BatchNorm) and m.training for m in method.train().modules()):
        why = "its batch norms are trained on statistics of whole batches"
    if why:
        raise UserError(
            f"A batch cannot be trained on in parts here: {why}.",
            where="trainer.oom=halve",
            remedy="set trainer.oom=fail and choose a smaller dataset.batch_size",
        )

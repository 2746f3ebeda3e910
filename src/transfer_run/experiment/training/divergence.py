"""A run that diverged ends as a failed run: its loss is looked at, and weights that are no numbers are never kept.

The loss is read every `trainer.log_every` steps, when it is written down anyway, and at the end of an epoch and of the
fit: no step waits for the device more than before. `trainer.stop_on_nan=false` leaves the loss alone, for a loss that
is known to recover; weights are refused in any case.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from transfer_run.backbones.weights.checkpoints import OF_DIVERGED
from transfer_run.errors import RunFailed
from transfer_run.experiment.record.log import LOG


class StopOnNan(Callback):
    """Ends the run when the training loss is infinite or no number; comes before what saves checkpoints.

    Args:
        every: steps between two looks.
        log: the run's log, named in the message.

    Raises:
        RunFailed: from its hooks.
    """

    def __init__(self, every: int, log: Path) -> None:
        self.every, self.run_log = every, log  # Lightning puts a `log` of its own on callbacks
        self.loss: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.loss = outputs["loss"]
        if trainer.global_step % self.every == 0 or trainer.is_last_batch:
            self.check(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer.global_step)

    def check(self, step: int) -> None:
        value = 0.0 if self.loss is None else float(self.loss)
        if not math.isfinite(value):
            raise diverged(f"The training loss is {value} at step {step}.", self.run_log)


def diverged(what: str, log: Path) -> RunFailed:
    """The failure of a run that diverged, written to its log."""
    LOG.error(what)
    return RunFailed(log, f"{what} The run has diverged: {OF_DIVERGED}")

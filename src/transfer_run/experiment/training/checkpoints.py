"""Checkpoints that a killed or preempted run goes on from, the signals that ask for one, and what validations decide.

optimizer step ──> validation due? ── no ──> last.ckpt, if due
                       └─ yes ──> score ──> the best so far? best.ckpt ──> `patience` without a better one? the end
                                                                   └─ no ──> last.ckpt, if due
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from transfer_run.data.scores.direction import Better
from transfer_run.errors import UserError
from transfer_run.experiment.training.module import TransferModule
from transfer_run.experiment.training.signals import Signals


class Interrupted(Exception):
    """Ctrl-C, after saving. Lightning would turn a KeyboardInterrupt into exit code 1; `train` turns this into one."""


@dataclass
class Selection:
    """The best validation so far, and how many came since.

    Attributes:
        better: is the first value of the headline better than the second?
        patience: validations without a better one after which training ends; None: it goes on to its end.
    """

    better: Better
    patience: int | None = None
    best: float | None = None
    since: int = 0

    def count(self, value: float | None) -> bool:
        """One more validation, None where it scored nothing; is it the best so far?"""
        if value is None:
            return False
        found = self.best is None or self.better(value, self.best)
        self.best, self.since = (value, 0) if found else (self.best, self.since + 1)
        return found

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.since >= self.patience


class Checkpoints(Callback):
    """Saves `last.ckpt` atomically at epoch ends, every few minutes, and when a signal asks the run to stop.

    Saving happens after an optimizer step, on all ranks after the same one. SIGTERM and SIGUSR1 (Slurm) end in
    `Preempted`, SIGINT in `Interrupted`. The validation that ends training is in no `last.ckpt`: a run that is killed
    between it and its end repeats the way there and stops at the same step.

    Args:
        folder: the run's `checkpoints/`.
        every_epochs: epochs between checkpoints.
        every_minutes: minutes between checkpoints.
        selection: what validations are compared by.
        keep_best: also keep the weights of the best one (`best.ckpt`).
        validate_steps: optimizer steps between validations; None: they come at ends of epochs.
    """

    def __init__(
        self,
        folder: Path,
        every_epochs: int,
        every_minutes: float,
        selection: Selection,
        keep_best: bool = False,
        validate_steps: int | None = None,
    ) -> None:
        self.folder, self.every_epochs, self.every_minutes = folder, every_epochs, every_minutes
        self.selection, self.keep_best, self.validate_steps = selection, keep_best, validate_steps
        self._saved_at = time.monotonic()
        self.signals = Signals()

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.selection.best, "since": self.selection.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.selection.best, self.selection.since = state_dict["best"], state_dict["since"]
        if self.keep_best and self.selection.best is not None and not self.best_path.is_file():
            raise UserError(
                f"The best weights so far are gone (trainer.select=best, {self.selection.best:.4g} on validation).",
                where=str(self.best_path),
                remedy="put the file back, or carry out the run again with force=true",
            )

    # ---- signals
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose own answer to SIGTERM is to end with exit code 0."""
        self.signals.take()
        if self.validate_steps is not None:
            self._validation_follows(trainer)  # gone on from the checkpoint of a validation: it was that step's

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.signals.give_back()

    # ---- validations
    def _validation_follows(self, trainer: pl.Trainer) -> bool:
        """Behind an optimizer step: does Lightning validate now? Where steps are counted, this is what it goes by."""
        if self.validate_steps is None:
            every = trainer.check_val_every_n_epoch or 1
            return trainer.is_last_batch and (trainer.current_epoch + 1) % every == 0
        due = trainer.global_step > 0 and trainer.global_step % self.validate_steps == 0
        # Lightning counts batches, which are no measure of steps where gradients are summed over some of them
        trainer.val_check_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if due else sys.maxsize
        return due

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        if self.selection.count(pl_module.headline) and self.keep_best:
            self.save(trainer, self.best_path)
        trainer.should_stop = trainer.should_stop or self.selection.exhausted
        self._save_if_due(trainer, trainer.is_last_batch)

    # ---- saving
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        assert isinstance(pl_module, TransferModule)
        if ready % pl_module.config["trainer"]["accumulate"] and not trainer.is_last_batch:
            return  # gradients are still being summed, and a checkpoint does not hold them
        if not self._validation_follows(trainer):  # else its end is the moment: a run that goes on must not lack it
            self._save_if_due(trainer, trainer.is_last_batch)

    def _save_if_due(self, trainer: pl.Trainer, epoch_ends: bool) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.signals.asked is not None, all=False)
        done = trainer.current_epoch + 1
        due = epoch_ends and (done % self.every_epochs == 0 or done == trainer.max_epochs)
        late = trainer.strategy.broadcast(time.monotonic() - self._saved_at > 60 * self.every_minutes)
        if (due or late or stop) and not self.selection.exhausted:
            self.save(trainer, self.last)
        if stop:
            error = self.signals.error(self.last)
            raise Interrupted if isinstance(error, KeyboardInterrupt) else error

    def save(self, trainer: pl.Trainer, path: Path) -> None:
        """Write to a neighbour, then move into place; all ranks call it."""
        for logger in trainer.loggers:
            logger.save()
        partial = path.with_name(f".{path.name}.partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            os.replace(partial, path)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()

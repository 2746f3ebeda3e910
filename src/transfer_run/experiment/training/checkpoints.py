"""Checkpoints that a killed or preempted run goes on from, and the signals that ask for one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from transfer_run.errors import Preempted
from transfer_run.experiment.training.module import TransferModule


class Interrupted(Exception):
    """Ctrl-C, after saving. Lightning would turn a KeyboardInterrupt into exit code 1; `train` turns this into one."""


class Checkpoints(Callback):
    """Saves `last.ckpt` atomically at epoch ends, every few minutes, and when a signal asks the run to stop.

    Saving happens after an optimizer step, on all ranks after the same one. SIGTERM and SIGUSR1 (Slurm) end in
    `Preempted`, SIGINT in `Interrupted`.

    Args:
        folder: the run's `checkpoints/`.
        every_epochs: epochs between checkpoints.
        every_minutes: minutes between checkpoints.
        keep_best: also keep the weights of the best validation headline (`best.ckpt`).
    """

    def __init__(self, folder: Path, every_epochs: int, every_minutes: float, keep_best: bool) -> None:
        self.folder, self.every_epochs, self.every_minutes = folder, every_epochs, every_minutes
        self.keep_best = keep_best
        self.best: float | None = None
        self._saved_at = time.monotonic()
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    # ---- signals
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose own answer to SIGTERM is to end with exit code 0."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._remember)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._signal = number

    # ---- saving
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if ready % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # gradients are still being summed, and a checkpoint does not hold them
        validated = trainer.is_last_batch and (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if not validated:  # else the validation's end is the moment: a run that goes on must not lack it
            self._save_if_due(trainer, trainer.is_last_batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        value = pl_module.headline
        if self.keep_best and value is not None and (self.best is None or value > self.best):
            self.best = value
            self.save(trainer, self.best_path)
        self._save_if_due(trainer, True)

    def _save_if_due(self, trainer: pl.Trainer, epoch_ends: bool) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        done = trainer.current_epoch + 1
        due = epoch_ends and (done % self.every_epochs == 0 or done == trainer.max_epochs)
        late = trainer.strategy.broadcast(time.monotonic() - self._saved_at > 60 * self.every_minutes)
        if due or late or stop:
            self.save(trainer, self.last)
        if stop:
            if self._signal == signal.SIGINT:
                raise Interrupted
            name = signal.Signals(self._signal or signal.SIGTERM).name
            raise Preempted(f"stopped by {name} after saving {self.last}")

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

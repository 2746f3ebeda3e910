"""Progress of a long run: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar

from transfer_run.experiment.record.log import LOG


class ProgressLines(Callback):
    """One line at the first step, then every `seconds`, and one at every epoch's end."""

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self._begin = self._last = time.monotonic()
        self._first_step = self._total = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin = self._last = time.monotonic()
        self._first_step = trainer.global_step
        # Lightning counts a step for every batch where a method takes its steps itself
        self._total = int(getattr(pl_module, "total_steps", 0) or trainer.estimated_stepping_batches)
        LOG.info("training: %s steps, %s batches an epoch", self._total, trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._last >= self.seconds:
            self._last = now
            self._say(trainer, f"batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say(trainer, "done")

    def _say(self, trainer: pl.Trainer, where: str) -> None:
        done = trainer.global_step - self._first_step
        left = max(0, self._total - trainer.global_step)
        pace = (time.monotonic() - self._begin) / max(1, done)
        values = "  ".join(f"{k} {float(v):.4g}" for k, v in sorted(trainer.callback_metrics.items()))
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        LOG.info("epoch %d%s %s  %s  about %.0f s left", trainer.current_epoch + 1, epochs, where, values, pace * left)


def progress_callback(kind: str) -> Callback | None:
    """The callback for `trainer.progress`: bar, lines, none, or auto (a bar where a person watches)."""
    if kind == "none":
        return None
    if kind == "bar" or (kind == "auto" and sys.stderr.isatty() and sys.stdout.isatty()):
        return RichProgressBar(leave=True)
    return ProgressLines()

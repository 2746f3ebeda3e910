"""What a run records of all its starts: a checkpoint holds it, so that nothing is lost with a process.

rows of metrics.csv, the last value of every score, seconds of training, samples trained on,
parts of a batch
"""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from transfer_run.errors import UserError
from transfer_run.experiment.record.metrics_csv import MetricsCsv
from transfer_run.experiment.training.module import TransferModule

LEDGER = "ledger"
VERSION = 1
"""Of what a checkpoint keeps here; another one is refused, for what it lacks would be guessed."""


class Ledger(Callback):
    """Puts the books into every checkpoint, and takes them out of the one that a run goes on from.

    What was done behind that checkpoint is in none of them: it is done again.
    """

    def __init__(self, metrics: MetricsCsv) -> None:
        self.metrics = metrics
        self._earlier, self._began = 0.0, time.perf_counter()

    def begin(self) -> None:
        """Training starts, or goes on."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of training, over all starts, up to now."""
        return self._earlier + time.perf_counter() - self._began

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, TransferModule)
        checkpoint[LEDGER] = {
            "version": VERSION,
            "rows": self.metrics.text(),
            "seconds": self.seconds,
            "samples": pl_module.samples,
            "reported": dict(pl_module.reported),
            "headline": pl_module.headline,
            "parts": pl_module.parts.count,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, TransferModule)
        found = checkpoint.get(LEDGER, {})
        if found.get("version") != VERSION:
            raise UserError(
                "The checkpoint that this run would go on from was written by another version.",
                where=str(trainer.ckpt_path),
                remedy="give force=true to start the run again from the beginning",
            )
        self.metrics.restore(found["rows"])
        self._earlier = found["seconds"]
        pl_module.samples, pl_module.headline = found["samples"], found["headline"]
        pl_module.parts.count = found["parts"]
        pl_module.reported = dict(found["reported"])

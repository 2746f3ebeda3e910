"""`metrics.csv` of a run folder: one row a logging step, appended to when a run goes on."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from transfer_run.files import write_atomically


class MetricsCsv(Logger):
    """Rows of `step, metric...`; a run that goes on puts back the rows of its checkpoint and writes below them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, str]] = []
        self._unwritten = 0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The config stands in `config.yaml`; nothing more to write."""

    def restore(self, text: str) -> None:
        """Go on below the rows that `text` returned before."""
        self.rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))]

    def text(self) -> str:
        """All rows so far, as they are written."""
        names = ["step", *sorted({name for row in self.rows for name in row} - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({"step": str(step or 0), **{name: f"{value:.8g}" for name, value in metrics.items()}})
        self._unwritten += 1
        if self._unwritten >= 50:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self._unwritten:
            return
        write_atomically(self.path, self.text())
        self._unwritten = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


class StepRows(Callback):
    """Logs the training loss, the mean over all processes, and the rate every `every` steps, before a checkpoint of the
    same step is written.

    Lightning itself logs after all callbacks have seen the step: a run stopped there would lose the row.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._logged = 0  # the step of the last row: with accumulation several batches end at one step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._logged = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self._logged:
            self._logged = step
            loss = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
            values = {"train/loss": float(loss), "lr": trainer.optimizers[0].param_groups[0]["lr"]}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

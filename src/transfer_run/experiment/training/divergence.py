"""A run that diverged ends as a failed run: its loss is looked at, and weights that are no numbers are never kept.

The loss is read every `trainer.log_every` steps, when it is written down anyway, and at the end of an epoch and of the
fit: no step waits for the device more than before. `trainer.stop_on_nan=false` leaves the loss alone, for a loss that
is known to recover; weights are refused in any case. `trainer.skip_nan=N` looks at every step's gradients instead and
leaves out those that are no numbers, up to N in a row.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from transfer_run.backbones.weights.checkpoints import OF_DIVERGED, not_finite
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
            self.check(trainer.global_step, f", batch {batch_idx} of epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer.global_step)

    def check(self, step: int, batch: str = "") -> None:
        value = 0.0 if self.loss is None else float(self.loss)
        if not math.isfinite(value):
            raise diverged(f"The training loss is {value} at step {step}{batch}.", self.run_log)


class SkipNan(Callback):
    """Leaves out optimizer steps whose gradients are infinite or no numbers; each is logged and recorded.

    Nothing is updated in such a step: no weight, no state of an optimizer, no weight decay. Schedules go on.

    Args:
        in_a_row: so many are left out; the next one ends the run.
        log: the run's log, named in the message.

    Raises:
        RunFailed: from its hook.
    """

    def __init__(self, in_a_row: int, log: Path) -> None:
        self.in_a_row, self.run_log = in_a_row, log
        self.steps: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = list(state_dict["steps"])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        broken = not_finite(found)
        if not trainer.strategy.reduce_boolean_decision(bool(broken), all=False):  # any part of a sharded one counts
            return
        step, broken = trainer.global_step + 1, broken or ["of another process"]
        if self.steps[-1:] != [step]:  # else another optimizer of the same step
            self.steps.append(step)
        last = self.steps[-self.in_a_row - 1 :]
        if last == list(range(step - self.in_a_row, step + 1)):
            what = f"The gradients of {len(last)} steps in a row, up to {step}, are no finite numbers ({broken[0]})."
            raise diverged(what, self.run_log)
        LOG.warning("step %d is left out: gradients that are no finite numbers (%s)", step, broken[0])
        optimizer.zero_grad(set_to_none=True)

    def notes(self) -> list[str]:
        """For the record."""
        if not self.steps:
            return []
        shown = ", ".join(map(str, self.steps[:20])) + (", ..." if len(self.steps) > 20 else "")
        return [f"{len(self.steps)} steps were left out: gradients that are no finite numbers ({shown})"]


def diverged(what: str, log: Path) -> RunFailed:
    """The failure of a run that diverged, written to its log."""
    LOG.error(what)
    return RunFailed(log, f"{what} The run has diverged: {OF_DIVERGED}")

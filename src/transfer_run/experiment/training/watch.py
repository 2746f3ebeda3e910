"""A run that is watched while it trains: a search is told of every validation, and may end the run early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from transfer_run.errors import Pruned

Watch = Callable[[int, dict[str, float]], bool]
"""(step, the scores of its validation) -> must the run end?"""

_watched: dict[Path, Watch] = {}


def watch(folder: Path, told: Watch) -> None:
    """Tell of the validations of the run of this folder, carried out in this process; not of its sources."""
    _watched[folder.absolute()] = told


def watching(folder: Path) -> Watching | None:
    """The callback of a run that is watched."""
    told = _watched.get(folder.absolute())
    return Watching(told) if told is not None else None


class Watching(Callback):
    """Raises `Pruned` after a validation where the run must end."""

    def __init__(self, told: Watch) -> None:
        self.told = told

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        scores: dict[str, float] = getattr(pl_module, "reported", {})
        found = {name: value for name, value in scores.items() if name.startswith("validation/")}
        if self.told(trainer.global_step, found):
            values = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            raise Pruned(f"ended early by the search after step {trainer.global_step}: {values}")

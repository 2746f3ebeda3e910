"""What `sweep.*` and the launcher ask of this machine, and what cannot be meant."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from transfer_run.errors import UserError
from transfer_run.memory.budget import parse_budget
from transfer_run.sweeps import slurm


def at_once(master: DictConfig) -> int:
    """Runs at a time: `hydra.launcher.n_jobs` of joblib, which is `sweep.parallel` where nothing else is said."""
    joblib = master.hydra.runtime.choices["hydra/launcher"] == "joblib"
    wanted = master.hydra.launcher.n_jobs if joblib else master.sweep.parallel
    if not isinstance(wanted, int | None):
        key = "hydra.launcher.n_jobs" if joblib and wanted != master.sweep.parallel else "sweep.parallel"
        raise UserError(f"{wanted!r} is no number of runs.", where=key, remedy="sweep.parallel=N")
    wanted = int(not joblib) if wanted is None else wanted
    return wanted if wanted > 0 else cores()


def memory(master: DictConfig) -> int | None:
    """Bytes that runs at a time may take together; None: what is free. 0 is no amount, and no word for that either."""
    asked = master.sweep.memory
    return None if asked is None else parse_budget(asked, "sweep.memory")


def _check_search(master: DictConfig) -> None:
    """What says how a search chooses is not passed over where every combination is carried out."""
    wanted = {"metric": None, "direction": None, "prune": "none"}
    given = next((key for key, unasked in wanted.items() if master.sweep[key] != unasked), None)
    if given is not None and master.sweep.trials is None:
        raise UserError(
            f"sweep.{given} is about a search, and this sweep carries out every combination.",
            where=f"sweep.{given}={master.sweep[given]}",
            remedy=f"add sweep.trials=N, or leave out sweep.{given}",
        )


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_launcher(master: DictConfig) -> None:
    choices = master.hydra.runtime.choices
    at_once(master)
    memory(master)
    _check_search(master)
    if choices["hydra/sweeper"] != "basic":
        raise UserError(
            f"hydra/sweeper={choices['hydra/sweeper']} chooses runs in its own way, which a sweep cannot take up.",
            where="hydra/sweeper",
            remedy="sweep.trials=N searches (docs/sweeps.md); without it every combination is run",
        )
    if choices["hydra/launcher"] == slurm.LAUNCHER and not master.dry_run:
        slurm.check_slurm(master.hardware)

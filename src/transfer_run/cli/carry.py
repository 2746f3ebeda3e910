"""One run from the command line: carried out, and every error as an exit code."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.files import no_room
from transfer_run.run_folder import CHECKPOINTS, LOG_FILE

if TYPE_CHECKING:
    from transfer_run.experiment.config.composed import Run


def carry(run: Run) -> Path:
    """Carry out one run, with its report where `report` asks for one; returns its folder.

    Raises:
        UserError, RunFailed, Preempted, KeyboardInterrupt: anything else is logged in the run's folder first.
    """
    from transfer_run.experiment.config.compose import make_importable
    from transfer_run.experiment.run import carry_out

    make_importable(run)
    try:
        folder = carry_out(run)
        if run.config["report"]:
            _report(run, folder)
        return folder
    except (UserError, RunFailed, Preempted):
        raise
    except KeyboardInterrupt as stopped:
        saved = any((run.folder / CHECKPOINTS).glob("*.ckpt"))
        raise KeyboardInterrupt(
            "the same command goes on from the last checkpoint."
            if saved
            else "nothing was saved yet, the same command begins anew."
        ) from stopped
    except Exception as error:
        folder = run.folder
        with suppress(OSError):  # the disk may be full
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        what = no_room(error)
        reason = f"{what}: there is no room to write to" if what else f"{type(error).__name__}: {error}"
        raise RunFailed(folder / LOG_FILE, reason) from error


def _report(run: Run, folder: Path) -> None:
    from transfer_run.tables.html.runs import write_report

    if run.config["dry_run"]:
        print("no report: dry_run carries nothing out", flush=True)
    else:
        print(f"report: {write_report(folder)}", flush=True)

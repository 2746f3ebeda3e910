"""The page of a sweep: its runs side by side, told from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transfer_run.experiment.record.state import FINISHED
from transfer_run.files import write_atomically
from transfer_run.sweeps.asked import Sweep
from transfer_run.sweeps.record import Row
from transfer_run.sweeps.table import SEED, differing
from transfer_run.tables.html.runs import REPORT, Compared, compared, several_page
from transfer_run.tables.html.runs import write_report as write_run_report


def write_report(sweep: Sweep, rows: Sequence[Row]) -> Path:
    """Write `report.html` into the sweep's folder; returns the file.

    A run is called by the words that tell it from the others; those that differ in the seed alone have one name.
    """
    runs: list[Compared] = []
    missing: list[tuple[str, str]] = []
    for row, words in zip(rows, differing([row.member.overrides for row in rows]), strict=True):
        label = ", ".join(value for key, value in words.items() if key != SEED) or sweep.name
        found = compared(row.member.folder, label) if row.state.status == FINISHED else None
        if found is None:
            missing.append(
                (row.member.told, row.state.status if row.state.status != FINISHED else "finished, no score")
            )
        else:
            runs.append(replace(found, report=_report_of(row.member.folder, sweep.folder)))
            if runs[-1].report:
                write_run_report(row.member.folder)  # again: beside it there are the runs that have finished since
    path = sweep.folder / REPORT
    write_atomically(path, several_page(f"Sweep {sweep.name}", sweep.command, runs, missing))
    return path


def _report_of(run: Path, start: Path) -> str:
    """The way from the sweep's folder to a run's own report; empty where it has none."""
    import os

    path = run / REPORT
    return Path(os.path.relpath(path, start)).as_posix() if path.is_file() else ""

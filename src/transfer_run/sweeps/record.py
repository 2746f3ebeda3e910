"""sweep.json: which runs a sweep has. How far they are is asked of their own folders, by whoever wants to know."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.errors import FAILED, PREEMPTED, USER_ERROR, UserError, nearest_names
from transfer_run.experiment.record.state import FINISHED, LOCK, RUNNING, WAITING, State, state_of
from transfer_run.files import make_folder, read_json, write_json
from transfer_run.run_folder import METRICS, read_config, read_result
from transfer_run.sweeps.asked import SWEEPS, Member, Sweep

NAME = "sweep.json"
FIELDS = ("metrics", "memory", "parameters", "time", "identity", "schema")
"""What a table needs of a result."""


@dataclass(frozen=True)
class Row:
    """A run of a sweep as it is now.

    Attributes:
        result: of `result.json` what tables show, and `headline`, the name of its first metric; empty without one.
    """

    member: Member
    state: State
    result: Mapping[str, Any]

    @property
    def score(self) -> float | None:
        name = self.result.get("headline")
        return float(self.result["metrics"][name]) if name else None


def rows_of(sweep: Sweep, seen: Mapping[int, State] | None = None) -> list[Row]:
    """Every run as its folder tells it.

    Args:
        seen: by number, what a process of this sweep saw of a run that leaves no record (a folder that cannot be
            written to, dry_run); of no account where the folder says anything.
    """
    rows = []
    for member in sweep.members:
        state = state_of(member.folder)
        if state.status == WAITING and seen and member.number in seen:
            state = seen[member.number]
        rows.append(Row(member, state, _result(member.folder) if state.status == FINISHED else {}))
    return rows


def _result(folder: Path) -> dict[str, Any]:
    """`result.json` of a finished run, and the name of its headline metric; empty where there is none."""
    try:
        result, config = read_result(folder) or {}, read_config(folder)
    except UserError:  # a damaged config.yaml: the run is finished all the same
        return {}
    first = next(iter((config.get("dataset") or {}).get("metrics") or ()), None)
    metrics = result.get("metrics") or {}
    headline = f"test/{first}" if f"test/{first}" in metrics else next(iter(metrics), "")
    return {**{key: result[key] for key in FIELDS if key in result}, "headline": headline} if result else {}


def progress(row: Row) -> str:
    """How far a run is that a process is at: the last row of its metrics.csv, and who it is."""
    if row.state.status != RUNNING:
        return (row.state.reason.splitlines() or [""])[0]
    try:
        lines = (row.member.folder / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    step = f"step {lines[-1].partition(',')[0]}, " if len(lines) > 1 else ""
    return step + row.state.reason


@contextmanager
def at_work(sweep: Sweep, rows: Sequence[Row]) -> Iterator[int]:
    """While this process is at the sweep, which from now on stands in its folder. Several may be, each waiting for the
    runs that another one carries out, as long as they ask for the same ones.

    Args:
        rows: how far its runs are.

    Yields:
        How many runs the sweep of this name had before that are no part of it any more.

    Raises:
        UserError: another process is at other runs under this name.
    """
    make_folder(sweep.folder, f"output_dir: {sweep.folder}")
    wanted = {member.identity for member in sweep.members}
    file = os.open(sweep.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            others = _identities(sweep.folder) - wanted
        except BlockingIOError as error:
            fcntl.flock(file, fcntl.LOCK_SH)
            others = set()
            if _identities(sweep.folder) != wanted:
                raise UserError(
                    f"Another process is at a sweep called {sweep.name!r} that has other runs.",
                    where=f"sweep.name={sweep.name}",
                    remedy="choose another sweep.name, or leave it out: it then follows from the runs; or wait",
                ) from error
        write(sweep, rows)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield len(others)
    finally:
        os.close(file)


def _identities(folder: Path) -> set[str]:
    """Of the runs of the sweep that stands in a folder; none where there is none, or half of one."""
    try:
        return {member.identity for member in read(folder).members} if (folder / NAME).is_file() else set()
    except UserError:
        return set()


def write(sweep: Sweep, rows: Sequence[Row]) -> None:
    """Write sweep.json, with how far each run was just now."""
    runs = [
        {
            "run": m.number,
            "words": " ".join(m.overrides),
            "overrides": list(m.words),
            "identity": m.identity,
            "folder": str(m.folder),
        }
        | {"status": row.state.status, "reason": row.state.reason}
        for row in rows
        for m in (row.member,)
    ]
    about = {"name": sweep.name, "command": sweep.command, "words": sweep.words, "config_dirs": sweep.config_dirs}
    write_json(sweep.folder / NAME, {"schema": 1, **about, "launcher": sweep.launcher, "runs": runs})


def read(folder: Path) -> Sweep:
    """The sweep that stands in a folder.

    Raises:
        UserError: its sweep.json is damaged.
    """
    content = read_json(folder / NAME, "give the sweep's command again: it is written anew")
    members = [
        Member(int(run["run"]), tuple(run["overrides"]), str(run["identity"]), Path(run["folder"]))
        for run in content["runs"]
    ]
    return Sweep(folder, content["words"], content["config_dirs"], content["launcher"], members)


def find(name: str, output_dir: Path) -> Path:
    """The folder of the sweep NAME, a beginning of it, or a folder itself.

    Raises:
        UserError: there is none, or several.
    """
    root = output_dir / SWEEPS
    known = {path.parent.name: path.parent for path in sorted(root.glob(f"*/{NAME}"))}
    if name in known or (Path(name) / NAME).is_file():
        return known.get(name, Path(name))
    begun = [each for each in known if name and each.startswith(name)]
    if len(begun) == 1:
        return known[begun[0]]
    raise UserError(
        f"{len(begun)} sweeps begin with {name!r}." if begun else f"There is no sweep {name!r} in {root}.",
        where=f"sweep.status={name}",
        nearest=begun or nearest_names(name, known) or list(known)[:5],
        remedy="a sweep says its name when it begins; output_dir=DIR says where else to look",
    )


def exit_code(rows: Sequence[Row]) -> int:
    """0 where every run has finished, else the code of the worst that happened."""
    codes = {row.state.code for row in rows}
    return next((code for code in (PREEMPTED, FAILED, USER_ERROR) if code in codes), max(codes, default=0))

"""The runs of a sweep as jobs of a Slurm cluster: submitted at once, found again by anybody, left to themselves.

    repeat the command ──> squeue by the jobs' name ──> those that are there are waited for, the others submitted
    jobs                ──> carry out the runs; how far they are stands in the runs' folders

Only sbatch, squeue, scontrol, sinfo and scancel are asked: a cluster may have no accounting.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from filelock import FileLock

from transfer_run.errors import USER_ERROR, UserError, nearest_names
from transfer_run.experiment.record.state import FINISHED, KILLED, RUNNING, STATUS, WAITING, State, state_of
from transfer_run.files import make_folder, read_json, write_atomically, write_json
from transfer_run.sweeps.asked import Member, Sweep
from transfer_run.sweeps.record import Row
from transfer_run.sweeps.slurm_script import script

LAUNCHER = "slurm"
QUEUED = "queued"
"""The status of a run that a job will begin, or go on with."""
TASKS = "numbers.json"
PACE = 10.0
"""Seconds between two looks at the queue."""
PATIENCE = 60
"""Looks after which a cluster that does not answer is given up; its controller may be started anew meanwhile."""
NEVER = {
    "PartitionTimeLimit": "hardware.slurm.minutes",
    "PartitionNodeLimit": "hardware.nodes",
    "BadConstraints": "hardware.slurm.constraint",
    "AccountNotAllowed": "hardware.slurm.account",
    "InvalidAccount": "hardware.slurm.account",
    "InvalidQOS": "hardware.slurm.qos",
    "QOSNotAllowed": "hardware.slurm.qos",
    "QOSMaxCpuPerJobLimit": "hardware.slurm.cpus_per_device",
    "QOSMaxNodePerJobLimit": "hardware.nodes",
    "QOSMaxMemoryPerJob": "hardware.slurm.memory_gb",
    "QOSMaxWallDurationPerJobLimit": "hardware.slurm.minutes",
    "AssocMaxWallDurationPerJobLimit": "hardware.slurm.minutes",
}
"""Reasons for which a waiting job can never start, and the key that is to blame."""
REFUSALS = {
    "invalid partition": "hardware.slurm.partition",
    "invalid account": "hardware.slurm.account",
    "invalid qos": "hardware.slurm.qos",
    "invalid feature": "hardware.slurm.constraint",
    "generic resource": "hardware.devices; hardware=cpu asks for no GPU",
    "time limit": "hardware.slurm.minutes",
    "node count": "hardware.nodes",
    "memory": "hardware.slurm.memory_gb",
    "node configuration": "hardware.devices, hardware.nodes, hardware.slurm.cpus_per_device, hardware.slurm.memory_gb",
    "array": "hardware.slurm.parallel, or too many runs for one array",
}
"""What sbatch says, in small letters, and the key that is to blame."""


@dataclass(frozen=True)
class Job:
    """A job that the cluster knows.

    Attributes:
        id: `12_3` of an array's task.
        state: PENDING, RUNNING, COMPLETING, ...
        reason: why it waits.
    """

    id: str
    state: str
    reason: str

    @property
    def never(self) -> bool:
        """Does it wait for what will not come?"""
        return self.state == "PENDING" and self.reason in NEVER

    @property
    def told(self) -> str:
        waits = f", {self.reason}" if self.state == "PENDING" and self.reason not in ("None", "") else ""
        return f"job {self.id} ({self.state.lower()}{waits})"


class Jobs:
    """The jobs of one sweep. A task of an array stands for the identity of a run, however the words are ordered.

    Attributes:
        folder: of the batch scripts, and of each task's words and log.
        name: of the jobs; the cluster finds them by it.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.folder = sweep.folder.absolute() / LAUNCHER
        self.name = f"{sweep.name}.{hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]}"

    @property
    def tasks(self) -> dict[str, int]:
        """The number of each identity's task."""
        path = self.folder / TASKS
        return read_json(path, "cancel the sweep's jobs and delete it") if path.is_file() else {}

    def queued(self) -> dict[str, Job]:
        """Those that wait or run, by the identity of their run.

        Raises:
            UserError: the cluster does not answer.
        """
        identities = {number: identity for identity, number in self.tasks.items()}
        if not identities:
            return {}
        found = {}
        options = ("--me", "--noheader", "--array", f"--name={self.name}", "--format=%K|%i|%T|%r")
        for line in asked("squeue", *options).splitlines():
            task, job, state, reason = line.split("|", 3)
            if task.isdecimal() and int(task) in identities:
                found[identities[int(task)]] = Job(job, state, reason.strip())
        return found

    def submit(self, members: Sequence[Member]) -> dict[str, list[Member]]:
        """Submit these runs but for those that the cluster has already; by the id of the array that they are in.

        Raises:
            UserError: the cluster refuses them; none is left behind.
        """
        make_folder(self.folder, f"output_dir: {self.folder}")
        arrays: dict[str, list[Member]] = {}
        with FileLock(self.folder / ".lock"):  # the same command in two terminals
            there, tasks = self.queued(), self.tasks
            new = list({m.identity: m for m in members if m.identity not in there}.values())
            for member in new:
                tasks.setdefault(member.identity, len(tasks) + 1)
            write_json(self.folder / TASKS, dict(tasks))
            try:
                for group in _alike(new):
                    arrays[self._submit(group, tasks)] = group
            except UserError:
                if arrays:
                    asked("scancel", *arrays)
                raise
        return arrays

    def _submit(self, members: Sequence[Member], tasks: Mapping[str, int]) -> str:
        """Runs that ask the same of the cluster, as one array."""
        numbers = [tasks[member.identity] for member in members]
        for number, member in zip(numbers, members, strict=True):
            (self.folder / f"{number}.begun").unlink(missing_ok=True)
            write_atomically(self.folder / f"{number}.words", "".join(f"{word}\n" for word in self._words(member)))
        path, hardware = self.folder / f"job{numbers[0]}.sh", _hardware(members[0])
        command = [sys.executable, "-m", "transfer_run.cli.run"]
        write_atomically(path, script(hardware, self.name, path, command, Path.cwd()))
        array = f"--array={','.join(map(str, numbers))}%{hardware['slurm']['parallel']}"
        asked("sbatch", "--test-only", array, str(path), partition=hardware["slurm"]["partition"])
        return asked("sbatch", "--parsable", array, str(path)).strip().partition(";")[0]

    def _words(self, member: Member) -> list[str]:
        """What carries out one run, in its job."""
        first, *more = self.sweep.config_dirs or [""]
        folders = [f"--config-dir={first}"] if first else []
        folders += [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in more)}]"] if more else []
        kept = [word for word in member.words if not word.lstrip("+~").startswith("hydra")]
        return [*folders, *kept, "hydra/launcher=basic"]

    def how_ended(self, identity: str) -> State:
        """What became of the job of a run that has neither a result nor a job any more."""
        task = self.tasks.get(identity)
        log = self.folder / f"{task}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        last = next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
        return State(KILLED, f"its job has ended: {last}\n  log: {log}")

    def follow(self, members: Sequence[Member], tell: Callable[[str], None]) -> dict[str, State]:
        """Wait until the cluster has none of these runs any more, telling what changes; how those ended that leave no
        record, by identity.

        Raises:
            UserError: the cluster has not answered for long. KeyboardInterrupt, Preempted: the jobs go on.
        """
        seen, told, quiet = dict[str, State](), dict[int, str](), 0
        for queued in self._looks(tell):
            for identity, job in queued.items():
                if job.never:
                    asked("scancel", job.id)
                    what = f"Slurm can never start it: {job.reason}; look at {NEVER[job.reason]}"
                    seen[identity] = State(STATUS[USER_ERROR], what)
            for member in members:
                said = _told(member, queued.get(member.identity))
                if said != told.get(member.number):
                    told[member.number] = said
                    tell(f"#{member.number} {said}")
            quiet = 0 if any(member.identity in queued for member in members) else quiet + 1
            if quiet == 2:  # between its end and its being requeued nobody may have a job
                break
        lost = {m.identity for m in members if state_of(m.folder).status == WAITING} - set(seen)
        return {**seen, **{identity: self.how_ended(identity) for identity in lost}}

    def _looks(self, tell: Callable[[str], None]) -> Iterator[dict[str, Job]]:
        """What the cluster has of these jobs, now and again. Raises UserError: it has not answered for long."""
        silent = 0
        for pace in chain((1.0, 2.0, 5.0), repeat(PACE)):
            try:
                queued, silent = self.queued(), 0
            except UserError as error:
                silent += 1
                if silent == PATIENCE:
                    raise
                if silent == 1:
                    tell(f"{error.what} The jobs go on; it is asked again.")
            if not silent:
                yield queued
            time.sleep(min(pace, PACE))

    def as_rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of the sweep, with what the cluster says of those that nobody is at; without where it is silent."""
        try:
            queued = self.queued()
        except UserError as error:
            print(f"{error.what} What waits there is not told.", file=sys.stderr, flush=True)
            queued = {}
        return [
            replace(row, state=State(QUEUED, queued[row.member.identity].told))
            if row.member.identity in queued and row.state.status not in (FINISHED, RUNNING)
            else row
            for row in rows
        ]


def _told(member: Member, job: Job | None) -> str:
    status = state_of(member.folder).status
    if job is None or status == FINISHED:
        return status
    return f"{RUNNING if status == RUNNING else QUEUED}, {job.told}"


def _hardware(member: Member) -> Mapping[str, Any]:
    assert member.run is not None, "just composed"
    hardware: Mapping[str, Any] = member.run.config["hardware"]
    return hardware


def _alike(members: Sequence[Member]) -> list[list[Member]]:
    """Groups of those that ask the same of the cluster."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(json.dumps(_hardware(member), sort_keys=True), []).append(member)
    return list(groups.values())


def at_hand() -> bool:
    """Is there a Slurm to ask?"""
    return bool(shutil.which("sbatch") and shutil.which("squeue"))


def check_slurm(hardware: Mapping[str, Any]) -> None:
    """Refuse what no cluster could do.

    Raises:
        UserError: there is no Slurm here, or no time to save before the limit.
    """
    if not at_hand():
        raise UserError(
            "There is no Slurm on this machine: `sbatch` is not found.",
            where="hydra/launcher=slurm",
            remedy="give the command on a login node of the cluster, or choose another hardware or launcher",
        )
    asked_for = hardware["slurm"]
    if asked_for["save_seconds"] >= 60 * asked_for["minutes"]:
        raise UserError(
            f"A job of {asked_for['minutes']} minutes that is to save {asked_for['save_seconds']} s before its end "
            "never trains.",
            where="hardware.slurm.minutes, hardware.slurm.save_seconds",
            remedy="give it more minutes",
        )


def asked(command: str, *arguments: str, partition: str | None = None) -> str:
    """What a command of Slurm answers.

    Args:
        partition: that is asked for; for the nearest name of one.

    Raises:
        UserError: it refuses; in its own words, and with the key that is to blame.
    """
    done = subprocess.run([command, *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    lines = [line.partition("error: ")[2] or line for line in done.stderr.splitlines() if line.strip()]
    said = "; ".join(dict.fromkeys(lines)) or f"{command} ended with {done.returncode}"
    where = next((key for words, key in REFUSALS.items() if words in said.lower()), "hydra/launcher=slurm")
    names: list[str] = []
    if where == "hardware.slurm.partition":
        found = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True).stdout.split()
        names = nearest_names(partition or "", found) or found
    raise UserError(
        f"Slurm refuses: {said.rstrip('.')}.",
        where=where,
        nearest=names,
        remedy="ask for what the cluster has (`sinfo`, `scontrol show partition`); no job is left behind",
    )

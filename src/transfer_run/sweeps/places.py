"""Where runs fit side by side on this machine: its memory, or that of its GPUs, against their planned peaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.experiment.config.identity import canonical
from transfer_run.sweeps.asked import Member

OF_A_PROCESS = {"cpu": 400 * 2**20, "cuda": 700 * 2**20}
"""Bytes that a process takes beside what its plan counts: libraries, the CUDA context."""
USABLE = 0.95
"""Share of what is free that runs are given."""
NOT_IN_A_PLAN = (("seed",), ("output_dir",), ("sweep",), ("optimizer", "lr"), ("optimizer", "weight_decay"),
                 ("trainer", "max_epochs"), ("trainer", "max_steps"), ("contents",),
                 ("trainer", "progress"))  # fmt: skip
"""Keys in which runs may differ and have one plan."""


@dataclass(frozen=True)
class Place:
    """Attributes:
    device: cpu, or the numbers of GPUs.
    needs: bytes on each of them.
    threads: that the run's process computes with; 0: as many as there are.
    """

    devices: tuple[str, ...]
    needs: int
    threads: int = 0

    def enter(self) -> None:
        """Make this process compute there."""
        if self.devices and self.devices[0] != "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        if self.threads and "OMP_NUM_THREADS" not in os.environ:
            import torch

            os.environ["OMP_NUM_THREADS"] = str(self.threads)
            torch.set_num_threads(self.threads)


class Places:
    """The machine's devices with their free memory.

    Args:
        free: bytes by device; empty: nothing is counted, one run at a time.
        peaks: planned bytes by a run's number; None: its plan could not be made.
        threads: of each run.
        plan: makes the plan of a run that is not in `peaks`.
    """

    def __init__(
        self,
        free: Mapping[str, int] | None = None,
        peaks: Mapping[int, int | None] | None = None,
        threads: int = 0,
        plan: Callable[[Member], int | None] | None = None,
    ) -> None:
        self.free, self.peaks, self.threads = dict(free or {}), dict(peaks or {}), threads
        self.plan = plan

    def take(self, member: Member, *, alone: bool) -> Place | None:
        """Room for a run; None: it waits until others have ended.

        Args:
            alone: does nothing else run? Then it begins, however large: a plan is a plan.
        """
        if not self.free:
            return Place((), 0)
        assert member.run is not None
        kind, count = _wants(member.run.config["hardware"], self.free)
        if self.plan is not None and member.number not in self.peaks:
            self.peaks[member.number] = self.plan(member)
        peak = self.peaks.get(member.number)
        if peak is None and not alone:
            return None
        needs = (peak or 0) + OF_A_PROCESS["cpu" if kind == "cpu" else "cuda"]
        able = sorted((d for d in self.free if (d == "cpu") == (kind == "cpu")), key=lambda d: -self.free[d])
        fitting = [device for device in able if self.free[device] >= needs][:count]
        if len(fitting) < count:
            if not alone:
                return None
            fitting = able[:count]
        place = Place(tuple(fitting), needs, self.threads)
        for device in fitting:
            self.free[device] -= needs
        return place

    def leave(self, place: Place) -> None:
        for device in place.devices:
            self.free[device] += place.needs


def _wants(hardware: Mapping[str, Any], free: Mapping[str, int]) -> tuple[str, int]:
    """cpu or cuda, and how many; processes on one CPU share it."""
    gpus = any(device != "cpu" for device in free)
    if hardware["accelerator"] in ("gpu", "cuda") or (hardware["accelerator"] == "auto" and gpus):
        return "cuda", int(hardware["devices"])
    return "cpu", 1


def free_memory(limit: int | None) -> dict[str, int]:
    """Free bytes of this machine and of each of its GPUs.

    Args:
        limit: instead of what is free (`sweep.memory`).
    """
    gpus = _gpus()
    free = {"cpu": _machine(), **gpus}
    return {device: limit if limit is not None else int(USABLE * free[device]) for device in free}


def _machine() -> int:
    """Bytes that processes can still take, within the limit of a container."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8") if Path("/proc/meminfo").is_file() else ""
    found = [int(line.split()[1]) * 1024 for line in lines.splitlines() if line.startswith("MemAvailable")]
    amounts = found or [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such limit
        amounts.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(amounts))


def _gpus() -> dict[str, int]:
    """Free bytes of the GPUs that this process may use; asked of the driver's tool, for a process that has touched
    CUDA cannot be forked."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    asked = [tool, "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    found = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else [each.strip() for each in visible.split(",") if each.strip()]
    return {
        index: int(free) * 2**20
        for index, uuid, free in found
        if free.isdigit() and (allowed is None or index in allowed or uuid in allowed)
    }


def planned_peaks(members: Sequence[Member]) -> dict[int, int | None]:
    """Planned peaks in bytes by a run's number, each plan made once; None where none can be made.

    For a process of its own: plans import and trace models.
    """
    from transfer_run.experiment.config.compose import make_importable
    from transfer_run.experiment.planning.plan import plan_run

    found: dict[str, int | None] = {}
    peaks = {}
    for member in members:
        assert member.run is not None
        key = canonical(_without(member.run.config))
        if key not in found:
            make_importable(member.run)
            try:
                found[key] = int(plan_run(member.run).memory["peak"])
            except Exception as error:  # whatever keeps a plan from being made: the run then goes alone
                print(f"no plan, so it runs alone ({error.__class__.__name__}): {member.told}", flush=True)
                found[key] = None
        peaks[member.number] = found[key]
    return peaks


class Plans:
    """Planned peaks of runs that are asked for one after the other; those with one plan share it."""

    def __init__(self) -> None:
        self._found: dict[str, int | None] = {}

    def __call__(self, member: Member) -> int | None:
        assert member.run is not None
        key = canonical(_without(member.run.config))
        if key not in self._found:
            self._found[key] = in_a_process(lambda: planned_peaks([member])).get(member.number)
        return self._found[key]


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for *parents, leaf in NOT_IN_A_PLAN:
        node = own
        for key in parents:
            node = node[key]
        node.pop(leaf, None)
    return own


def in_a_process(work: Callable[[], dict[int, int | None]]) -> dict[int, int | None]:
    """What `work` answers, computed in a forked process; nothing of it stays in this one."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)  # who started it answers them: nothing is handed on from here
        code = 1
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return {int(number): peak for number, peak in json.loads(text or "{}").items()}

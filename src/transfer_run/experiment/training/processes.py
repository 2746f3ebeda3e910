"""The workers of a run on this machine: one process a device, which never outlives the process that started it.

parent ── end of a pipe ──> worker's standard input: it reads an end when the parent has died, and kills itself
       ── the run's lock ──> open in the worker, too: the folder is free when the last of them has gone
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

from transfer_run.signals import answered, give_back

WORKER = ("-m", "transfer_run.experiment.training.worker")
OUTCOME = ".outcome.json"
"""How the first worker that failed ended; in the run's folder."""
GRACE = 20.0
"""Seconds that the others have to end by themselves once one worker has failed: what can be saved is saved by then."""
MEETING = ("MASTER_", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
           "GROUP_WORLD_SIZE", "ROLE_", "TORCHELASTIC_")  # fmt: skip
"""What outer launchers tell their processes in the environment; ours tells its workers anew."""


@dataclass(frozen=True)
class Order:
    """A run, and the workers of one process of a group.

    Attributes:
        folder: the run's.
        sources: folders of its finished sources by name.
        host, port: where rank 0 is met.
        devices: of every machine.
        world: ranks of the whole run.
        node, local, count: the machine, its first device and how many devices are this process's.
    """

    folder: str
    sources: dict[str, str]
    host: str
    port: int
    devices: int
    world: int
    node: int = 0
    local: int = 0
    count: int = 1

    def at(self, node: int, local: int, per_node: int) -> Order:
        """The part of one process of `per_node` on a machine: one worker, or those of all its devices."""
        return replace(self, node=node, local=local, count=1 if per_node > 1 else self.devices)

    @property
    def first(self) -> int:
        """The lowest rank of this part."""
        return self.node * self.devices + self.local

    def environment(self, worker: int) -> dict[str, str]:
        """Of this part's worker number `worker`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(MEETING)}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {
            "OMP_NUM_THREADS": str(max(1, cores // self.devices)),
            **kept,
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
            "WORLD_SIZE": str(self.world),
            "NODE_RANK": str(self.node),
            "LOCAL_RANK": str(self.local + worker),
            "RANK": str(self.first + worker),
        }

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, content: Mapping[str, Any], host: str) -> Order:
        """As the leader sent it, which is met where it was found."""
        return cls(**{**content, "host": host})


class Workers:
    """The workers of an order, started; the signals of this process are handed on to them until `stop`.

    Args:
        lock: an open file of the run's lock, for them to hold as well.

    Attributes:
        asked: the last signal that came.
        failed: the rank and exit code of the first that failed.
    """

    def __init__(self, order: Order, lock: int | None = None) -> None:
        self.order = order
        self.asked: int | None = None
        self.failed: tuple[int, int] | None = None
        self._deadline: float | None = None
        self._before = answered(self._hand_on, signal.SIGINT)
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for worker in range(order.count):
                self.processes.append(_start(order, worker, lock))
        except BaseException:
            self.stop()
            raise

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        for process in self.processes:
            process.send_signal(number)

    @property
    def ended(self) -> bool:
        """Have all ended? Once one has failed, the others have some seconds to."""
        codes = [process.poll() for process in self.processes]
        wrong = [(self.order.first + worker, code) for worker, code in enumerate(codes) if code]
        if wrong and self.failed is None:
            self.failed = wrong[0]
            self.hurry()
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._kill()
        return all(code is not None for code in codes)

    def hurry(self) -> None:
        """Somebody has failed: the others are killed when they do not end."""
        self._deadline = self._deadline or time.monotonic() + GRACE

    def stop(self) -> list[int]:
        """Kill those that are left, give the signals back; the exit codes."""
        self._kill()
        codes = [process.wait() for process in self.processes]
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        give_back(self._before)
        return codes

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()

    def wait(self, watch: Callable[[], None]) -> list[int]:
        """Wait until all have ended, looking at `watch` meanwhile; the exit codes."""
        try:
            while not self.ended:
                watch()
                time.sleep(0.05)
        finally:
            codes = self.stop()
        return codes


def _start(order: Order, worker: int, lock: int | None) -> subprocess.Popen[bytes]:
    """In a session of its own: what a terminal sends to all its processes comes by way of the parent, once."""
    rank = order.first + worker
    arguments = [sys.executable, *WORKER, order.folder]
    arguments.append(json.dumps(order.sources))
    output: IO[bytes] | None = None if rank == 0 else rank_log(Path(order.folder), rank).open("ab")
    try:
        return subprocess.Popen(
            arguments,
            env=order.environment(worker),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],
        )
    finally:
        if output is not None:
            output.close()


def rank_log(folder: Path, rank: int) -> Path:
    """The log of a process beside the first, whose own is `run.log`."""
    return folder / f"run.rank{rank}.log"

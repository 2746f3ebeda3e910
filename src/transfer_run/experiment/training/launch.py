"""Runs on several devices: one process a device, started from the composed config, never from the command line.

Starting workers from the words of the command line would compose, sweep and make folders once more in every worker.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.training.group import Gone, leader
from transfer_run.experiment.training.processes import OUTCOME, Order, Workers
from transfer_run.run_folder import LOG_FILE


def wanted_processes(run: Run) -> int:
    """Processes on all machines."""
    return int(run.config["hardware"]["devices"]) * int(run.config["hardware"]["nodes"])


def launch(run: Run, folder: Path, sources: Mapping[str, Path], lock: int | None) -> None:
    """Start one worker a device, here and on the other machines, and wait; the first failure ends all.

    Args:
        lock: an open file of the run's lock.

    Raises:
        UserError, Preempted, KeyboardInterrupt, RunFailed: as the first worker that failed reported it.
    """
    (folder / OUTCOME).unlink(missing_ok=True)
    lead = leader()
    order = Order(
        str(folder.absolute()),
        {name: str(path.absolute()) for name, path in sources.items()},
        "127.0.0.1",
        free_port(),
        int(run.config["hardware"]["devices"]),
        wanted_processes(run),
    )
    if lead is not None:
        lead.order(order)
    workers = Workers(order.at(0, 0, lead.place.per_node if lead else 1), lock)
    elsewhere: dict[tuple[int, int], list[int]] = {}

    def watch() -> None:
        if lead is None:
            return
        elsewhere.update(lead.codes())
        if any(any(codes) for codes in elsewhere.values()):
            workers.hurry()

    try:
        codes = workers.wait(watch)
        if any(codes) and lead is not None:
            lead.stop()
        while lead is not None and len(elsewhere) < lead.count:
            elsewhere.update(lead.codes(0.2))
    except Gone as error:
        raise RunFailed(folder / LOG_FILE, "a process of another machine has died") from error
    all_codes = [*codes, *(code for part in elsewhere.values() for code in part)]
    if any(all_codes):
        raise _outcome(folder, all_codes, workers)


def _outcome(folder: Path, codes: list[int], workers: Workers) -> BaseException:
    """What ends the run: what a worker said of it, or what it was asked to."""
    path = folder / OUTCOME
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.unlink(missing_ok=True)
    kind, message = said.get("kind", ""), said.get("message", f"the processes of the run ended with {codes}")
    if kind == "UserError":
        return UserError(**said["error"])
    if kind == "KeyboardInterrupt" or workers.asked == signal.SIGINT:
        return KeyboardInterrupt()
    if kind == "Preempted":
        return Preempted(message)
    if workers.asked is not None:
        return Preempted(f"stopped by {signal.Signals(workers.asked).name} before the next checkpoint")
    if workers.failed is not None and workers.failed[1] < 0:
        rank, code = workers.failed
        return RunFailed(folder / LOG_FILE, f"process {rank} was killed by {signal.Signals(-code).name}")
    return RunFailed(folder / LOG_FILE, message)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])

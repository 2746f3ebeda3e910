"""Runs on several devices: one process a device, started from the composed config, never from the command line.

Starting workers from the words of the command line would compose, sweep and make folders once more in every worker.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.config.composed import Run
from transfer_run.files import write_json
from transfer_run.run_folder import LOG_FILE

OUTCOME = ".outcome.json"


def wanted_processes(run: Run) -> int:
    """Processes on this machine."""
    return int(run.config["hardware"]["devices"])


def launch(run: Run, folder: Path, sources: dict[str, Path]) -> None:
    """Start one worker a device and wait; signals are handed on, the first failure ends all.

    Raises:
        UserError, Preempted, KeyboardInterrupt, RunFailed: as rank 0 reported it.
    """
    count = wanted_processes(run)
    (folder / OUTCOME).unlink(missing_ok=True)
    environment = {
        **os.environ,
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(_free_port())),
        "WORLD_SIZE": str(count * int(run.config["hardware"]["nodes"])),
        "NODE_RANK": os.environ.get("NODE_RANK", "0"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }
    arguments = [sys.executable, "-m", "transfer_run.experiment.training.workers", str(folder)]
    arguments.append(json.dumps({name: str(path) for name, path in sources.items()}))
    workers = [subprocess.Popen(arguments, env={**environment, "LOCAL_RANK": str(rank)}) for rank in range(count)]
    codes = _wait(workers)
    if any(codes):
        _raise_outcome(folder, codes)


def _wait(workers: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all workers; once one has failed the others get a minute to end."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    deadline: float | None = None
    try:
        while any(worker.poll() is None for worker in workers):
            if deadline is None and any(worker.poll() for worker in workers):
                deadline = time.monotonic() + 60
            if deadline is not None and time.monotonic() > deadline:
                for worker in workers:
                    worker.kill()
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return [int(worker.returncode) for worker in workers]


def _raise_outcome(folder: Path, codes: list[int]) -> None:
    path = folder / OUTCOME
    outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kind, message = outcome.get("kind", ""), outcome.get("message", f"workers ended with exit codes {codes}")
    if kind == "UserError":
        raise UserError(**outcome["error"])
    if kind == "Preempted":
        raise Preempted(message)
    if kind == "KeyboardInterrupt":
        raise KeyboardInterrupt
    raise RunFailed(folder / LOG_FILE, message)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """One worker: `python -m transfer_run.experiment.training.workers FOLDER SOURCES`."""
    from transfer_run.experiment.config.compose import saved
    from transfer_run.experiment.record.log import run_log
    from transfer_run.experiment.training.train import train

    folder = Path(sys.argv[1])
    sources = {name: Path(path) for name, path in json.loads(sys.argv[2]).items()}
    run = saved(folder)
    first = os.environ.get("LOCAL_RANK") == "0" and os.environ.get("NODE_RANK", "0") == "0"
    try:
        with run_log(folder, console=first):
            train(run, folder, sources)
    except BaseException as error:
        if not (folder / OUTCOME).exists():
            fields = ("what", "where", "nearest", "remedy")
            details = {f: getattr(error, f) for f in fields} if isinstance(error, UserError) else {}
            write_json(
                folder / OUTCOME,
                {"kind": type(error).__name__, "message": f"{type(error).__name__}: {error}", "error": details},
            )
        raise


if __name__ == "__main__":
    main()

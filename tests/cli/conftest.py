"""Commands as their users call them, in this process or one of their own, and a stand-in for the part that trains."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from transfer_run.cli import list as listing
from transfer_run.cli import run
from transfer_run.cli.exits import exit_code
from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.record.state import held
from transfer_run.signals import STOPS, give_back

USER = Path(__file__).parents[1] / "user_configs"
"""A folder of configs and modules outside the package."""

TOY = ("--config-dir", str(USER), "method=toy", "backbone=small", "dataset=sentences")
"""A valid run of the user's own parts."""

COMMANDS: dict[str, Callable[[tuple[str, ...]], int | None]] = {"run": run.run, "list": listing.show}


@dataclass
class Answer:
    """What a command said.

    Attributes:
        seconds: processor time of a process of its own, which other work on the machine does not lengthen.
    """

    code: int
    out: str
    err: str
    seconds: float = 0.0


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Call `transfer-NAME ARGUMENTS` in an empty folder, within this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(name: str, *arguments: str) -> Answer:
        capfd.readouterr()
        before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGINT)}
        with monkeypatch.context() as here:
            here.setattr(sys, "path", list(sys.path))
            here.delitem(sys.modules, "toy", raising=False)
            try:
                code = exit_code(lambda: COMMANDS[name](arguments))
            except SystemExit as left:  # `--version`
                code = int(left.code or 0)
            finally:
                give_back(before)
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Answer]:
    """The same in a process of its own, for what only that shows: its exit code, its time, other processes."""

    def call(name: str, *arguments: str) -> Answer:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", f"transfer_run.cli.{name}", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Answer(done.returncode, done.stdout, done.stderr, seconds)

    return call


ENDS: dict[int, Callable[[], BaseException]] = {
    2: lambda: UserError("no network", remedy="name local weights"),
    1: lambda: ArithmeticError("it broke"),
    11: lambda: RunFailed(Path("some/run.log"), "it broke in a worker"),
    75: lambda: Preempted("stopped, saved"),
    130: KeyboardInterrupt,
}
"""Seed -> how the stand-in's run ends."""
KILLED = 9
SIGNALS = {230: signal.SIGINT, 243: signal.SIGTERM}
"""Seed -> what the sweep's process is sent while the run goes on."""


def carry_out(run: Any) -> Path:
    """What its seed says, in no time: a result, an error, a signal that ends its process or the whole sweep."""
    config, seed, folder = run.config, run.config["seed"], run.folder
    with held(folder):
        if seed == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed in SIGNALS:
            os.kill(os.getppid(), SIGNALS[seed])
            time.sleep(60)  # what the sweep's process hands on ends it
        if seed in ENDS:
            raise ENDS[seed]()
        toy = importlib.import_module("toy").NAME if config["method"]["name"] == "toy" else "none"
        print(f"carried out {run.chosen('method')} seed {seed} with module {toy}", flush=True)
        memory = {"peak": 3 * 2**20, "source": "tracker", "predicted_peak": 3 * 2**20}
        result = {"status": "finished", "identity": "0" * 64, "memory": memory,
                  "metrics": {"test/accuracy": seed / 10, "test/f1": 0.25}, "time": {"fit_seconds": 1.5},
                  "parameters": {"total": 10, "trainable": 2}}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        (folder / "config.yaml").write_text("dataset: {metrics: [accuracy, f1]}", encoding="utf-8")
    return folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this process a run is carried out by the stand-in, which trains nothing."""
    from transfer_run.experiment import run as product

    monkeypatch.setattr(product, "carry_out", carry_out)

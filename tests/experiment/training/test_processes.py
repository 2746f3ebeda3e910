"""Workers on one machine: signals reach them once, one that fails ends all, none outlives its parent. Stand-ins for
workers, which train nothing, show it; `tests/faults/test_devices.py` has the real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_run.experiment.record.state import is_held
from transfer_run.experiment.training import processes
from transfer_run.experiment.training.processes import Order, Workers, rank_log

WORKER = """
import os, signal, sys, threading, time
from pathlib import Path
from transfer_run.experiment.training.worker import _end_with_parent
threading.Thread(target=_end_with_parent, daemon=True).start()
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
signal.signal(signal.SIGTERM, lambda *_: print("told", rank, flush=True))
(folder / f"began{rank}").write_text(str(os.getpid()))
print("rank", rank, "of", os.environ["WORLD_SIZE"], flush=True)
while not (folder / f"go{rank}").exists():
    time.sleep(0.01)
sys.exit(int((folder / f"go{rank}").read_text() or 0))
"""
PARENT = """
import sys
from pathlib import Path
from tests.experiment.training.test_processes import WORKER
from transfer_run.experiment.record.state import held
from transfer_run.experiment.training import processes
processes.WORKER = ("-c", WORKER)
with held(Path(sys.argv[1])) as lock:
    workers = processes.Workers(processes.Order(sys.argv[1], {}, "127.0.0.1", 1, 2, 2, count=2), lock)
    workers.wait(lambda: None)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORKER", ("-c", WORKER))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def begun(folder: Path, count: int = 2) -> list[int]:
    """The workers' process ids."""
    files = [folder / f"began{rank}" for rank in range(count)]
    until(lambda: all(file.is_file() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def started(folder: Path) -> Workers:
    return Workers(Order(str(folder), {}, "127.0.0.1", 1, 2, 2, count=2))


def test_each_has_its_rank_and_its_log(tmp_path: Path, stand_in: None, capfd: pytest.CaptureFixture[str]) -> None:
    workers = started(tmp_path)
    begun(tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    assert workers.asked == signal.SIGTERM
    until(lambda: "told 1" in rank_log(tmp_path, 1).read_text())
    for rank in (0, 1):
        (tmp_path / f"go{rank}").touch()
    assert workers.wait(lambda: None) == [0, 0]
    assert rank_log(tmp_path, 1).read_text().splitlines() == ["rank 1 of 2", "told 1"]
    assert capfd.readouterr().out.splitlines() == ["rank 0 of 2", "told 0"]


def test_one_that_fails_ends_the_others(tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.1)
    workers = started(tmp_path)
    begun(tmp_path)
    (tmp_path / "go1").write_text("3")
    assert workers.wait(lambda: None) == [-signal.SIGKILL, 3]
    assert workers.failed == (1, 3)


def test_one_that_is_done_does_not(tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one still records the run."""
    monkeypatch.setattr(processes, "GRACE", 0.0)
    workers = started(tmp_path)
    begun(tmp_path)
    (tmp_path / "go1").touch()
    until(lambda: workers.processes[1].poll() == 0)
    assert not workers.ended
    assert not workers.ended
    (tmp_path / "go0").touch()
    assert workers.wait(lambda: None) == [0, 0]


def test_none_outlives_a_killed_parent_and_the_run_is_held_as_long_as_one_is_there(tmp_path: Path) -> None:
    """Stopped workers cannot see that their parent is gone: nobody else gets the folder before they do."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    pids = begun(tmp_path)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    assert is_held(tmp_path)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not is_held(tmp_path))
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_parts_of_a_run_on_several_machines() -> None:
    order = Order("f", {}, "a", 1, devices=4, world=8)
    whole, single = order.at(1, 0, per_node=1), order.at(1, 2, per_node=4)
    assert (whole.first, whole.count) == (4, 4)
    assert (single.first, single.count) == (6, 1)
    assert whole.environment(3)["RANK"] == "7"
    assert whole.environment(3)["LOCAL_RANK"] == "3"
    assert single.environment(0)["LOCAL_RANK"] == "2"
    assert Order.of(single.as_json(), "b").host == "b"


def test_workers_are_told_anew_what_outer_launchers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "9")
    found = Order("f", {}, "a", 1234, devices=1, world=1).environment(0)
    assert found["MASTER_PORT"] == "1234"
    assert not {"TORCHELASTIC_USE_AGENT_STORE", "LOCAL_WORLD_SIZE"} & set(found)

"""One process a run: what ends one of them, and what the sweep's process is sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.sweeps import places
from transfer_run.sweeps.asked import Member
from transfer_run.sweeps.places import OF_A_PROCESS, Place, Places
from transfer_run.sweeps.pool import Ending, Pool, Report

SWEEP = """
import os, sys, time
from pathlib import Path
from transfer_run.errors import Preempted
from transfer_run.sweeps.asked import Member
from transfer_run.sweeps.pool import Pool
from transfer_run.sweeps.places import Places

folder = Path(sys.argv[1])

def carry(member, report):
    try:
        (folder / f"{member.number}.begun").write_text(str(os.getpid()))
        time.sleep(120)
    except BaseException as error:
        (folder / f"{member.number}.saved").write_text(f"{type(error).__name__} {error}")
        raise

ended = []
pool = Pool(carry, 2, Places())
pool.run([Member(n, (), "", folder) for n in (1, 2, 3)], lambda member: "", lambda member, end: ended.append(end.code))
print(pool.asked, sorted(ended), flush=True)
"""
"""Two of three runs at a time, which go on until they are stopped."""


def members(count: int, folder: Path = Path("/nowhere")) -> list[Member]:
    return [Member(number, (), "", folder) for number in range(1, count + 1)]


def carried(
    carry: Callable[[Member, Report], None], count: int, at_once: int, logs: Path | None = None
) -> dict[int, Ending]:
    endings: dict[int, Ending] = {}
    Pool(carry, at_once, Places(), logs).run(
        members(count), lambda member: "", lambda member, ending: endings.update({member.number: ending})
    )
    return endings


def until(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_ends_one_run_is_that_runs_alone(at_once: int, tmp_path: Path) -> None:
    def carry(member: Member, report: Report) -> None:
        print("from run", member.number)
        if member.number == 1:
            raise UserError("no network", remedy="name local weights")
        if member.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if member.number == 3:
            os._exit(7)
        if member.number == 4:
            raise ArithmeticError("it broke")
        (tmp_path / str(member.number)).touch()

    endings = carried(carry, 6, at_once, tmp_path / "logs")
    assert {number: ending.code for number, ending in endings.items()} == {1: 2, 2: -9, 3: 7, 4: 1, 5: 0, 6: 0}
    assert endings[1].reason == "no network\n  do:      name local weights"
    assert endings[2].reason == "killed by SIGKILL"
    assert endings[4].reason == "ArithmeticError: it broke"
    assert {path.name for path in tmp_path.iterdir()} == {"5", "6", "logs"}
    assert (tmp_path / "logs" / "5.log").read_text() == "from run 5\n"
    assert "Traceback" in (tmp_path / "logs" / "4.log").read_text()


def test_as_many_at_a_time_as_asked_for(tmp_path: Path) -> None:
    def carry(member: Member, report: Report) -> None:
        own = tmp_path / f"now-{member.number}"
        own.touch()
        if member.number < 3:  # each of the first two waits for the other: they only end side by side
            until(lambda: (tmp_path / f"seen-{3 - member.number}").exists() or _both(tmp_path), "the other one")
            (tmp_path / f"seen-{member.number}").touch()
        assert len(list(tmp_path.glob("now-*"))) <= 2
        own.unlink()

    def _both(folder: Path) -> bool:
        return {"now-1", "now-2"} <= {path.name for path in folder.iterdir()}

    assert [ending.code for ending in carried(carry, 5, 2).values()] == [0] * 5


def test_processes_may_start_processes(tmp_path: Path) -> None:
    """`hardware.num_workers` inside a run of a sweep."""

    def carry(member: Member, report: Report) -> None:
        from torch.utils.data import DataLoader

        (tmp_path / str(sorted(int(x) for x in DataLoader(range(4), num_workers=2)))).touch()  # type: ignore[arg-type]

    assert carried(carry, 1, 1)[1] == Ending(0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["[0, 1, 2, 3]"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_reach_every_run_and_no_other_begins(number: signal.Signals, tmp_path: Path) -> None:
    sweep = begin(tmp_path)
    sweep.send_signal(number)
    out = sweep.communicate(timeout=60)[0]
    code = 130 if number == signal.SIGINT else 75
    assert out == f"{int(number)} [{code}, {code}]\n"
    assert {path.name for path in tmp_path.iterdir()} == {"1.begun", "1.saved", "2.begun", "2.saved"}


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells children of their parent's death on Linux alone")
def test_no_run_outlives_the_sweep(tmp_path: Path) -> None:
    sweep = begin(tmp_path)
    sweep.kill()
    sweep.communicate()
    until(lambda: len(list(tmp_path.glob("*.saved"))) == 2, "a run that is told of its parent's end")
    assert all(path.read_text().startswith("Preempted stopped by SIGTERM") for path in tmp_path.glob("*.saved"))
    assert not (tmp_path / "3.begun").exists()


def begin(folder: Path) -> subprocess.Popen[str]:
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP, str(folder)], stdout=subprocess.PIPE, text=True)
    until(
        lambda: all((folder / f"{n}.begun").is_file() and (folder / f"{n}.begun").read_text() for n in (1, 2)), "runs"
    )
    return sweep


class Composed:
    """As much of a composed run as a place asks for."""

    def __init__(self, **hardware: object) -> None:
        self.config = {"hardware": {"accelerator": "auto", "devices": 1, **hardware}}


def asking(number: int, **hardware: object) -> Member:
    return Member(number, (), "", Path("/nowhere"), Composed(**hardware))  # type: ignore[arg-type]


def test_runs_that_do_not_fit_together_wait() -> None:
    own, gib = OF_A_PROCESS["cpu"], 2**30
    places = Places({"cpu": 8 * gib}, {1: 5 * gib, 2: 5 * gib, 3: 2 * gib, 4: None, 5: 20 * gib}, threads=1)
    first = places.take(asking(1), alone=True)
    assert first == Place(("cpu",), 5 * gib + own, 1)
    assert places.take(asking(2), alone=False) is None, "5 + 5 GiB do not fit into 8"
    beside = places.take(asking(3), alone=False)
    assert beside == Place(("cpu",), 2 * gib + own, 1), "a smaller one goes before it"
    places.leave(beside)
    assert places.take(asking(4), alone=False) is None, "nobody knows what it takes: alone"
    places.leave(first)
    second = places.take(asking(2), alone=True)
    assert second is not None
    places.leave(second)
    assert places.take(asking(5), alone=False) is None
    assert places.take(asking(5), alone=True) is not None, "more than there is, by its plan: alone it may try"
    assert Places().take(asking(9), alone=False) is not None, "nothing is counted"


def test_runs_that_are_chosen_one_by_one_are_planned_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a search: those that differ in what no plan depends on share one."""
    gib, made = 2**30, list[int]()

    def plan(members: list[Member]) -> dict[int, int | None]:
        made.append(members[0].number)
        return {member.number: 5 * gib for member in members}

    monkeypatch.setattr(places, "planned_peaks", plan)
    monkeypatch.setattr(places, "in_a_process", lambda work: work())
    found = Places({"cpu": 8 * gib}, plan=places.Plans())
    trials = [asking(number) for number in (1, 2)]
    for trial in trials:
        assert trial.run is not None
        trial.run.config.update({"seed": trial.number, "optimizer": {"lr": trial.number}, "trainer": {}, "sweep": {}})
    assert found.take(trials[0], alone=True) is not None
    assert found.take(trials[1], alone=False) is None, "5 + 5 GiB do not fit into 8"
    assert made == [1]


def test_runs_are_spread_over_gpus() -> None:
    own, gib = OF_A_PROCESS["cuda"], 2**30
    places = Places({"cpu": gib, "0": 20 * gib, "1": 24 * gib}, dict.fromkeys(range(1, 9), 10 * gib))
    taken = [places.take(asking(number), alone=False) for number in range(1, 5)]
    assert [place and place.devices for place in taken] == [("1",), ("0",), ("1",), None], (
        "24 GiB hold two of 10 and their processes, 20 only one"
    )
    assert own * 2 < 4 * gib
    for place in taken[:3]:
        assert place is not None
        places.leave(place)
    both = places.take(asking(6, devices=2), alone=False)
    assert both is not None
    assert set(both.devices) == {"0", "1"}
    assert places.take(asking(7, accelerator="cpu"), alone=False) is None, "the CPU's memory is the CPU's"

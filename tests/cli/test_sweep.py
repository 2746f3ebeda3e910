"""`transfer-run -m`: one run of each combination, whatever becomes of the others."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import conftest as stand_ins
from tests.cli.conftest import ENDS, TOY, Answer
from transfer_run.experiment.record.state import held
from transfer_run.sweeps.asked import Member, Sweep
from transfer_run.sweeps.record import rows_of
from transfer_run.sweeps.table import lines_of_runs


def only_sweep(folder: Path) -> Path:
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    return sweep


def statuses(sweep: Path) -> list[str]:
    """Of the runs of a sweep, in order, as it was left."""
    return [run["status"] for run in json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["runs"]]


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination_is_run(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    answer = command("run", *TOY, "-m", "seed=3,4", "method.depth=range(1,3)", "output_dir=o/${seed}${method.depth}",
                     "hydra.sweep.dir=outputs/sweeps/mine")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.out.count("carried out toy") == 4
    assert "4 of 4 runs finished" in answer.out
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["31", "32", "41", "42"]
    names = {path.name for path in (tmp_path / "outputs" / "sweeps" / "mine").iterdir()}
    assert names == {"sweep.json", "sweep.csv", "table.md", "plot.png", ".lock"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "outputs"]


def test_a_run_that_fails_does_not_end_the_others(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    answer = command("run", *TOY, "-m", "seed=1,2,3,9,4")
    assert answer.code == 1
    assert "2 of 5 runs finished" in answer.out
    assert statuses(only_sweep(tmp_path)) == ["failed", "refused", "finished", "killed", "finished"]
    summary = answer.err.partition("Not finished:")[2]
    assert "seed=1\n    failed: ArithmeticError: it broke\n" in summary
    assert "seed=2\n    refused: no network\n      do:      name local weights" in summary
    assert re.search(r"seed=9\n    killed: process \d+ on \S+ was killed", summary)
    assert "seed=3" not in summary
    assert "Traceback" not in answer.err


def test_the_same_command_goes_on_with_the_same_sweep(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished runs are shown, stopped and killed ones go on, a failed one waits for `sweep.retry_failed`."""
    words = [*TOY, "-m", "seed=1,3,9,75,2"]
    first = command("run", *words)
    sweep = only_sweep(tmp_path)
    assert statuses(sweep) == ["failed", "finished", "killed", "preempted", "refused"]
    for seed in (75, 2):
        monkeypatch.delitem(ENDS, seed)
    monkeypatch.setattr(stand_ins, "KILLED", -1)
    again = command("run", *words, "trainer.progress=none")
    assert again.out.count("carried out toy") == 3
    assert "carried out toy seed 3" not in again.out
    assert (first.code, again.code, only_sweep(tmp_path)) == (75, 1, sweep)
    assert statuses(sweep) == ["failed", "finished", "finished", "finished", "finished"]
    assert "sweep.retry_failed=true repeats what failed" in again.err
    monkeypatch.delitem(ENDS, 1)
    repeated = command("run", *words, "sweep.retry_failed=true")
    assert repeated.code == 0, repeated.err
    assert repeated.out.count("carried out toy") == 1
    assert rows(sweep)[0]["status"] == "finished"
    assert "carried out" not in command("run", *words).out


@pytest.mark.parametrize(
    ("words", "code", "states"),
    [
        (["seed=2,3"], 2, ["refused", "finished"]),
        (["seed=1,3", "sweep.stop_on_error=true"], 1, ["failed", "waiting"]),
        (["seed=75,3"], 75, ["preempted", "finished"]),
        (["seed=4,230,3"], 130, ["finished", "interrupted", "waiting"]),
        (["seed=4,243,3"], 75, ["finished", "preempted", "waiting"]),
    ],
    ids=["user errors only", "stop on error", "one run preempted", "Ctrl-C", "SIGTERM"],
)
def test_what_a_sweep_leaves_with(
    words: list[str], code: int, states: list[str], command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    """Also where it is interrupted: a table, the files, and each run's state."""
    answer = command("run", *TOY, "-m", *words)
    assert answer.code == code, answer.err
    sweep = only_sweep(tmp_path)
    assert statuses(sweep) == states
    assert [row["status"] for row in rows(sweep)] == states
    assert f"sweep {sweep.name}: {states.count('finished')} of {len(states)} runs finished" in answer.out
    assert (sweep / "plot.png").read_bytes()[1:4] == b"PNG"


def test_a_sweep_ends_with_a_table(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    words = ["seed=5,6,2,1", "method.depth=2", "method.scale=10,1.5", "hydra.sweep.dir=s"]
    answer = command("run", *TOY, "-m", *words)
    assert answer.code == 1
    lines = answer.out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("#  "))
    assert lines[first].split() == ["#", "seed", "method.scale", "test/accuracy", "peak", "memory", "status"]
    assert lines[first + 1].split() == ["1", "5", "10", "0.5000", "3.0", "MiB", "finished"]
    assert lines[first + 3].split() == ["3", "6", "10", "0.6000", "3.0", "MiB", "finished"]
    assert lines[first + 5].split() == ["5", "2", "10", "refused"]
    assert lines[first + 7].split() == ["7", "1", "10", "failed"]
    found = rows(tmp_path / "s")
    assert [row["seed"] for row in found] == ["5", "5", "6", "6", "2", "2", "1", "1"]
    assert {key: found[2][key] for key in ("method.scale", "test/f1", "headline", "peak_bytes", "trainable")} == {
        "method.scale": "10", "test/f1": "0.25", "headline": "test/accuracy", "peak_bytes": "3145728",
        "trainable": "2",
    }  # fmt: skip
    assert (found[4]["test/f1"], found[4]["status"], found[4]["reason"]) == ("", "refused", "no network")
    assert "method.depth" not in found[0], "the same in all runs"
    table = (tmp_path / "s" / "table.md").read_text(encoding="utf-8").splitlines()
    start = table.index("| method.scale | runs | test/accuracy | peak memory |")
    assert table[start + 2 : start + 4] == [  # sorted as numbers; 0.5 and 0.6 have a deviation of 0.0707
        "| 1.5 | 2 of 4 | 0.5500 ± 0.0707 | 3.0 MiB |", "| 10 | 2 of 4 | 0.5500 ± 0.0707 | 3.0 MiB |",
    ]  # fmt: skip
    assert sum("seed=1 " in line and "failed (ArithmeticError: it broke)" in line for line in table) == 2


def test_the_status_is_told_to_any_other_process(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    command("run", *TOY, "-m", "seed=1,3,4", "sweep.name=night")
    (running, _) = sorted(
        path for path in (tmp_path / "outputs/runs/sentences").iterdir() if (path / "result.json").is_file()
    )
    (running / "result.json").unlink()
    (running / "metrics.csv").write_text("step,train/loss\n10,0.5\n20,0.4\n")
    with held(running):
        answer = command("run", "sweep.status=nig")
    assert answer.code == 0, answer.err
    lines = {line.split()[1]: line for line in answer.out.splitlines() if line[:1].isdigit()}
    seed = "3" if "running" in lines["3"] else "4"
    assert re.search(rf"running +step 20, process {os.getpid()} on ", lines[seed])
    assert re.search(r"failed +ArithmeticError: it broke", lines["1"])
    assert "sweep night: 1 failed, 1 running, 1 finished" in answer.out
    nowhere = command("run", "sweep.status=nigth")
    assert nowhere.code == 2
    assert "nearest: night" in nowhere.err
    assert command("run", "sweep.status=night", "seed=1").code == 2


@pytest.mark.parametrize("kilobytes", [4, 12, 24])
def test_a_full_disk_is_said_in_one_line(
    kilobytes: int, command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    """At whatever file of the sweep or of its runs the room ends; the table is printed where anything has begun."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted only by root")
    try:
        answer = command("run", *TOY, "-m", "seed=3,4", "output_dir=disk")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)
    assert "Traceback" not in answer.err + answer.out
    assert "no space left on device" in answer.err.lower()
    assert answer.code in (1, 2)
    assert ("runs finished" in answer.out) == (answer.code == 1)


BROKEN = """
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher

@dataclass
class Conf:
    _target_: str = "hydra_plugins.broken.Broken"

ConfigStore.instance().store(group="hydra/launcher", name="broken", node=Conf, provider="broken")

class Broken(Launcher):
    def setup(self, *, hydra_context, task_function, config):
        pass

    def launch(self, job_overrides, initial_job_idx):
        raise ConnectionError("the scheduler is down")
"""


def test_a_launcher_that_breaks_hides_nothing(
    process: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of Hydra's that somebody has installed: the table and the files are there all the same."""
    (tmp_path / "lib" / "hydra_plugins" / "broken").mkdir(parents=True)
    (tmp_path / "lib" / "hydra_plugins" / "broken" / "__init__.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'lib'}:{os.environ.get('PYTHONPATH', '')}")
    answer = process("run", *TOY, "-m", "seed=3,4", "hydra/launcher=broken")
    assert answer.code == 1
    assert "ConnectionError: the scheduler is down" in answer.err
    assert "Traceback" not in answer.err
    assert "0 of 2 runs finished" in answer.out
    assert statuses(only_sweep(tmp_path)) == ["waiting", "waiting"]
    assert {"table.md", "plot.png", "sweep.csv"} <= {path.name for path in only_sweep(tmp_path).iterdir()}


def test_two_sweeps_of_one_name(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    """At once only with the same runs; one after the other it is said what was replaced."""
    words = [*TOY, "-m", "sweep.name=night"]
    assert command("run", *words, "seed=3,4").code == 0
    file = only_sweep(tmp_path) / ".lock"
    with file.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        same = command("run", *words, "seed=4,3")
        assert same.code == 0, same.err
        different = command("run", *words, "seed=3,5")
        assert different.code == 2
        assert "Another process is at a sweep called 'night' that has other runs" in different.err
        assert statuses(only_sweep(tmp_path)) == ["finished", "finished"]
    more = command("run", *words, "seed=3,4,5")
    assert more.code == 0
    assert "no part of it any more" not in more.out
    assert "2 runs that this sweep had before are no part of it any more" in command("run", *words, "seed=5").out


def test_a_sweep_of_the_default_run_says_so(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    answer = command("run", "-m")
    assert answer.code == 0, answer.err
    assert "#1: the default run" in answer.out
    (run,) = json.loads((only_sweep(tmp_path) / "sweep.json").read_text(encoding="utf-8"))["runs"]
    assert run["words"] == ""


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", ""])
def test_a_sweep_stays_in_the_output_folder(name: str, command: Callable[..., Answer], tmp_path: Path) -> None:
    answer = command("run", *TOY, "-m", "seed=3,4", f"sweep.name='{name}'")
    assert answer.code == 2
    assert "sweep.name" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=many"], "hydra.launcher.n_jobs"),
        (["hydra/launcher=joblib", "sweep.parallel=-3"], "sweep.parallel"),
        (["hydra.sweeper.params=3"], "hydra.sweeper.params"),
        (["sweep.memory=lots"], "where:   sweep.memory"),
        (["sweep.memory=0"], "where:   sweep.memory"),
        (["sweep.parallel=two"], "where:   sweep.parallel"),
        (["sweep.status=x"], "sweep.status=NAME"),
    ],
)
def test_words_of_a_sweep_that_say_nothing(
    words: list[str], said: str, command: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = command("run", *TOY, "-m", "seed=3,4", *words)
    assert answer.code == 2
    assert said in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_sweep_writes_nothing(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfer_run.experiment.run.carry_out", lambda run: print("was planned") or run.folder)
    answer = command("run", *TOY, "-m", "seed=3,4", "dry_run=true")
    assert answer.code == 0, answer.err
    assert answer.out.count("was planned") == 2
    assert "0 of 2 runs finished, 2 planned (dry_run: nothing is written)" in answer.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plus", ["", "++"])
def test_words_replace_the_axes_of_an_experiment(
    plus: str, command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    """However its file writes their keys, they are no second axis."""
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "search.yaml").write_text(
        "# @package _global_\n# A search.\ndefaults:\n  - override /method: full\nhydra:\n  sweeper:\n    params:\n"
        f"      {plus}optimizer.lr: 0.1,0.2\n      {plus}seed: 3,4\n      profiler: none,memory\n"
    )
    words = [
        "--config-dir",
        str(folder),
        "-m",
        "experiment=search",
        "hydra.sweep.dir=s",
        "output_dir=o/${seed}_${optimizer.lr}",
    ]
    answer = command("run", *words, "seed=7,8,10", "profiler=none")
    assert answer.code == 0, answer.err
    assert sorted((row["optimizer.lr"], row["seed"]) for row in rows(tmp_path / "s")) == [
        (lr, seed) for lr in ("0.1", "0.2") for seed in ("10", "7", "8")
    ]


def test_metrics_of_several_data_sets_are_named(tmp_path: Path) -> None:
    """Each run's own headline; a run without a result has none."""
    members = []
    for number, metric in enumerate(("accuracy", "pearson", ""), start=1):
        run = tmp_path / str(number)
        run.mkdir()
        if metric:
            (run / "result.json").write_text(json.dumps({"status": "finished", "metrics": {f"test/{metric}": 0.5}}))
            (run / "config.yaml").write_text(f"dataset: {{metrics: [{metric}]}}")
        words = (rf"dataset=d\:{number}", "sources.a=method=full seed=1")
        members.append(Member(number, words, "0" * 64, run))
    found = rows_of(Sweep(tmp_path, [], [], "basic", members))
    lines = [line.split() for line in lines_of_runs(found)]
    assert lines[0] == ["#", "dataset", "metric", "peak", "memory", "status"]
    assert lines[2] == ["2", "d:2", "test/pearson", "0.5000", "finished"]
    assert lines[3] == ["3", "d:3", "waiting"]


def test_nothing_starts_when_one_run_is_wrong(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    answer = command("run", *TOY, "-m", "seed=3,4", "method.mode=plain,gate")
    assert answer.code == 2
    assert "method.mode must be one of" in answer.err
    assert "in run 2 of 4: " in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_single_run_goes_where_its_launcher_sends_it(
    command: Callable[..., Answer], stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    answer = command("run", *TOY, "hardware=slurm")
    assert answer.code == 2
    assert "There is no Slurm on this machine" in answer.err
    assert "hydra/launcher=slurm" in answer.err

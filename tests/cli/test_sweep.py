"""`transfer-run -m`: one run of each combination, whatever becomes of the others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TOY, Answer
from transfer_run.cli.sweep_table import write_table


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """What the runs of the only sweep in the folder left, in order."""
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    paths = sorted((sweep / "jobs").iterdir(), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def test_every_combination_is_run(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    answer = command("run", *TOY, "-m", "seed=3,4", "method.depth=range(1,3)", "output_dir=o/${seed}${method.depth}",
                     "hydra.sweep.dir=outputs/sweeps/mine")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.out.count("carried out toy") == 4
    assert "4 of 4 runs finished" in answer.out
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["31", "32", "41", "42"]
    names = {path.name for path in (tmp_path / "outputs" / "sweeps" / "mine").iterdir()}
    assert names == {"jobs", "multirun.yaml", "sweep.csv"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "outputs"]


def test_a_run_that_fails_does_not_end_the_others(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    answer = command("run", *TOY, "-m", "seed=1,2,3,4")
    assert answer.code == 1
    assert "2 of 4 runs finished" in answer.out
    assert [outcome["code"] for outcome in outcomes(tmp_path)] == [1, 2, 0, 0]
    summary = answer.err.partition("Failed:")[2]
    assert "seed=1\n    ArithmeticError: it broke\n      log: outputs/runs/sentences/toy-small-" in summary
    assert "seed=2\n    no network\n      do:      name local weights" in summary
    assert "seed=3" not in summary
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("words", "code", "codes"),
    [
        (["seed=2,3"], 2, [2, 0]),
        (["seed=1,3", "sweep.stop_on_error=true"], 1, [1, 1]),
        (["seed=75,3"], 75, [75, 1]),
    ],
    ids=["user errors only", "stop on error", "preempted"],
)
def test_what_a_sweep_leaves_with(
    words: list[str], code: int, codes: list[int], command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    answer = command("run", *TOY, "-m", *words)
    assert answer.code == code
    assert [outcome["code"] for outcome in outcomes(tmp_path)] == codes


def test_a_sweep_ends_with_a_table(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    words = ["seed=5,6,2,1", "method.depth=2", "method.scale=0.5,1.5", "hydra.sweep.dir=s"]
    answer = command("run", *TOY, "-m", *words)
    assert answer.code == 1
    lines = answer.out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("#  "))
    assert lines[first].split() == ["#", "seed", "method.scale", "test/accuracy", "peak", "memory", "status"]
    assert lines[first + 1].split() == ["1", "5", "0.5", "0.5000", "3.0", "MiB", "finished"]
    assert lines[first + 3].split() == ["3", "6", "0.5", "0.6000", "3.0", "MiB", "finished"]
    assert lines[first + 5].split() == ["5", "2", "0.5", "refused"]
    assert lines[first + 7].split() == ["7", "1", "0.5", "failed"]
    with (tmp_path / "s" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["5", "5", "6", "6", "2", "2", "1", "1"]
    assert {key: rows[2][key] for key in ("method.scale", "test/f1", "headline", "peak_bytes", "trainable")} == {
        "method.scale": "0.5", "test/f1": "0.25", "headline": "test/accuracy", "peak_bytes": "3145728",
        "trainable": "2",
    }  # fmt: skip
    assert (rows[4]["test/f1"], rows[4]["status"], rows[4]["reason"]) == ("", "refused", "no network")
    assert "method.depth" not in rows[0], "the same in all runs"


def test_an_interrupted_sweep_ends_at_once(command: Callable[..., Answer], stand_in: None) -> None:
    answer = command("run", *TOY, "-m", "seed=130,3")
    assert answer.code == 130
    assert "carried out" not in answer.out


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
    with (tmp_path / "s" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["optimizer.lr"], row["seed"]) for row in csv.DictReader(file)]
    assert sorted(rows) == [(lr, seed) for lr in ("0.1", "0.2") for seed in ("10", "7", "8")]


def test_metrics_of_several_data_sets_are_named(tmp_path: Path) -> None:
    """Each run's own headline; a run that is finished without a result (dry_run) has none."""
    outcomes = {}
    for number, metric in enumerate(("accuracy", "pearson", "")):
        run = tmp_path / str(number)
        run.mkdir()
        if metric:
            (run / "result.json").write_text(json.dumps({"status": "finished", "metrics": {f"test/{metric}": 0.5}}))
            (run / "config.yaml").write_text(f"dataset: {{metrics: [{metric}]}}")
        words = [rf"dataset=d\:{number}", "sources.a=method=full seed=1"]
        outcomes[number] = {"overrides": words, "code": 0, "folder": str(run), "reason": ""}
    lines = [line.split() for line in write_table(tmp_path, outcomes)]
    assert lines[0] == ["#", "dataset", "metric", "peak", "memory", "status"]
    assert lines[2] == ["2", "d:1", "test/pearson", "0.5000", "finished"]
    assert lines[3] == ["3", "d:2", "finished"]


def test_nothing_starts_when_one_run_is_wrong(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    answer = command("run", *TOY, "-m", "seed=3,4", "method.mode=plain,gate")
    assert answer.code == 2
    assert "method.mode must be one of" in answer.err
    assert "in run 2 of 4: " in answer.err
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_in_one_second_do_not_share_a_folder(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    for _ in range(2):
        command("run", *TOY, "-m", "seed=2", "hydra.sweep.dir=here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "here-2"]


BROKEN = """# @package _global_
# A method whose module ends in its own way.
method:
  name: {name}
  about: {{title: A broken one, target: {name}.Method, family: tuning, shape: tune}}
"""


@pytest.mark.slow
def test_several_at_a_time_and_one_killed(process: Callable[..., Answer], tmp_path: Path) -> None:
    """joblib's processes compose and import for themselves; one that is killed is reported like the others."""
    (tmp_path / "method").mkdir()
    for name, end in (("breaks", "raise ArithmeticError('it broke')"), ("dies", "import os\nos._exit(9)")):
        (tmp_path / "method" / f"{name}.yaml").write_text(BROKEN.format(name=name), encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(end, encoding="utf-8")
    words = ["--config-dir", str(tmp_path), "-m", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random",
             "dry_run=true", "hardware=cpu", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]  # fmt: skip
    answer = process("run", *words, "method=linear_probe,breaks")
    assert answer.code == 1, answer.err
    assert [outcome["code"] for outcome in outcomes(tmp_path)] == [0, 1]
    assert "ArithmeticError: it broke" in answer.err
    killed = process("run", *words, "method=dies")
    assert killed.code == 1
    assert "method=dies" in killed.err
    assert "ended without a word" in killed.err


def test_a_single_run_goes_where_its_launcher_sends_it(
    command: Callable[..., Answer], stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    answer = command("run", *TOY, "hardware=slurm")
    assert answer.code == 2
    assert "There is no Slurm on this machine" in answer.err
    assert "hydra/launcher=slurm" in answer.err

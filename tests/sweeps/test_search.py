"""`sweep.trials=N`: runs that are chosen by the validation results of those before, and a search that was stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TOY, Answer, command  # noqa: F401  a fixture
from transfer_run.errors import Pruned
from transfer_run.experiment.record.state import held
from transfer_run.experiment.training import watch
from transfer_run.sweeps.search import direction

SPACE = ["-m", "method.scale=interval(0.0,1.0)", "method.depth=1,2", "output_dir=o"]
STOPPED = "stopped"
"""A file in the working folder: in the trial after this many Ctrl-C is pressed, once."""


def carry_out(run: Any) -> Path:
    """Best at scale 0.7 and depth 2; four validations on the way, as training would tell of them."""
    scale, depth, folder = run.config["method"]["scale"], run.config["method"]["depth"], run.folder
    value = 0.5 * (depth == 2) + 0.5 - abs(scale - 0.7)
    with held(folder):
        if Path(STOPPED).exists() and len(list(Path("o/runs").rglob("result.json"))) == int(Path(STOPPED).read_text()):
            Path(STOPPED).unlink()
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(60)
        told = watch.watching(folder)
        for step in range(1, 5):
            if told is not None and told.told(step, {"validation/accuracy": value * step / 4}):
                raise Pruned(f"ended early by the search after step {step}")
        metrics = {"test/accuracy": value - 0.01, "validation/accuracy": value}
        (folder / "result.json").write_text(json.dumps({"status": "finished", "metrics": metrics}), encoding="utf-8")
        (folder / "config.yaml").write_text("dataset: {metrics: [accuracy]}", encoding="utf-8")
        print("carried out", flush=True)
    return folder


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer_run.experiment.run.carry_out", carry_out)


def runs(tmp_path: Path) -> list[dict[str, Any]]:
    (sweep,) = (tmp_path / "o" / "sweeps").iterdir()
    found: list[dict[str, Any]] = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return found


def test_a_search_goes_on_where_it_was_stopped(
    command: Callable[..., Answer],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Stopped in the middle and given again, it chooses what one that was not stopped chooses."""
    words = [*TOY, *SPACE, "sweep.trials=12"]
    assert command("run", *words).code == 0
    chosen = [run["words"] for run in runs(tmp_path)]
    assert len(set(chosen)) > 10
    (tmp_path / "o").rename(tmp_path / "first")
    (tmp_path / STOPPED).write_text("9")
    stopped = command("run", *words)
    assert stopped.code == 130, stopped.err
    assert [run["status"] for run in runs(tmp_path)].count("interrupted") == 1
    again = command("run", *words)
    assert again.code == 0, again.err
    assert [run["words"] for run in runs(tmp_path)] == chosen
    assert again.out.count("carried out") <= 3
    assert "carried out" not in command("run", *words).out
    more = command("run", *words[:-1], "sweep.trials=14")
    assert more.code == 0
    assert len(runs(tmp_path)) == 14
    assert [line[:4] for line in more.out.splitlines() if line.startswith("#1")] == ["#13:", "#14:"]


def test_the_best_trial_is_a_normal_run(
    command: Callable[..., Answer],  # noqa: F811
    tmp_path: Path,
) -> None:
    answer = command("run", *TOY, *SPACE, "sweep.trials=20")
    assert answer.code == 0, answer.err
    (sweep,) = (tmp_path / "o" / "sweeps").iterdir()
    files = {"sweep.json", "sweep.csv", "table.md", "plot.png", "study.db", "best.json"}
    assert files <= {path.name for path in sweep.iterdir()}
    best = json.loads((sweep / "best.json").read_text(encoding="utf-8"))
    assert best["metric"] == "validation/accuracy"
    assert best["params"]["method.depth"] == "2"
    results = [json.loads((Path(run["folder"]) / "result.json").read_text()) for run in runs(tmp_path)]
    assert best["value"] == max(result["metrics"]["validation/accuracy"] for result in results)
    assert best["value"] > 0.85
    assert f"best by validation/accuracy: run {best['run']}, " in answer.out
    words = best["command"].split()[1:]
    (Path(best["folder"]) / "result.json").unlink()
    assert command("run", *TOY[:2], *words).code == 0
    assert (Path(best["folder"]) / "result.json").is_file(), "its words alone make the same run"


def test_runs_that_lag_behind_are_ended_early(
    command: Callable[..., Answer],  # noqa: F811
    tmp_path: Path,
) -> None:
    words = [*TOY, *SPACE, "sweep.trials=16", "sweep.prune=median"]
    answer = command("run", *words)
    assert answer.code == 0, answer.err
    found = runs(tmp_path)
    early = [run for run in found if run["status"] == "pruned"]
    assert early, "some lag behind"
    assert all("ended early by the search after step" in run["reason"] for run in early)
    assert [run["status"] for run in found[:4]] == ["finished"] * 4, "the first ones set the pace"
    assert f"{16 - len(early)} of 16 runs finished, {len(early)} ended early" in answer.out
    assert "carried out" not in command("run", *words).out


@pytest.mark.parametrize(
    "other",
    [
        ["method.scale=interval(0.0,0.5)", "method.depth=1,2"],
        ["method.scale=0.5", "method.depth=1,2"],
        [*SPACE[1:3], "seed=1"],
        [*SPACE[1:3], "sweep.metric=validation/f1"],
        [*SPACE[1:3], "sweep.direction=minimize"],
    ],
)
def test_another_search_of_the_same_name_is_refused(
    other: list[str],
    command: Callable[..., Answer],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Its values would be taken for those of this one."""
    words = [*TOY, "-m", "output_dir=o", "sweep.trials=1", "dataset.metrics=[accuracy,f1]"]
    assert command("run", *words, *SPACE[1:3], "sweep.name=a").code == 0
    before = runs(tmp_path)
    answer = command("run", *words, *other, "sweep.name=a")
    assert answer.code == 2, answer.out
    assert "There is another search called 'a'" in answer.err
    assert runs(tmp_path) == before
    assert command("run", *words, *other).code == 0
    assert len(list((tmp_path / "o" / "sweeps").iterdir())) == 2, "without a name it is one of its own"


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [("accuracy", "maximize"), ("f1", "maximize"), ("mae", "minimize"), ("perplexity", "minimize")],
)
def test_the_direction_is_the_metrics_own(metric: str, wanted: str) -> None:
    assert direction(f"validation/{metric}") == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "seed=0", "sweep.trials=3"], "A search needs something to choose"),
        (["method.scale=0.1", "sweep.trials=3"], "add -m"),
        (["-m", "seed=0,1", "sweep.trials=0"], "sweep.trials"),
        (["-m", "seed=0,1", "sweep.trials=3", "sweep.metric=test/accuracy"], "validation split"),
        (["-m", "seed=0,1", "sweep.trials=3", "sweep.metric=validation/acuracy"], "nearest: accuracy"),
        (["-m", "seed=0,1", "sweep.metric=validation/accuracy"], "add sweep.trials=N"),
        (["-m", "seed=0,1", "sweep.direction=minimize"], "add sweep.trials=N"),
        (["-m", "seed=0,1", "sweep.prune=median"], "add sweep.trials=N"),
        (["-m", "method.scale=interval(1.0,0.5)", "sweep.trials=3"], "Nothing can be drawn"),
        (["-m", "method.scale=tag(log,interval(0.0,0.5))", "sweep.trials=3"], "Nothing can be drawn"),
        (["-m", "method.mode=plain,gate", "sweep.trials=3"], "method.mode must be one of"),
        (["-m", "seed=0,1", "sweep.trials=3", "sweep.prune=sometimes"], "sweep.prune"),
        (["-m", "seed=0,1", "sweep.trials=3", "sweep.prune=median", "hardware=ddp"], "several devices"),
        (["-m", "seed=0,1", "sweep.trials=3", "dry_run=true"], "leave out dry_run"),
    ],
)
def test_wrong_words(
    words: list[str],
    said: str,
    command: Callable[..., Answer],  # noqa: F811
    tmp_path: Path,
) -> None:
    answer = command("run", *TOY, *words)
    assert answer.code == 2
    assert said in answer.err
    assert not (tmp_path / "outputs").exists()

"""Reports of runs, sweeps and tables: one file each, that asks nothing of anybody, looked at in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from transfer_run.cli.exits import exit_code
from transfer_run.cli.run import run as command
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.record.state import FINISHED, State
from transfer_run.experiment.run import carry_out
from transfer_run.run_folder import read_result
from transfer_run.sweeps.asked import Member, Sweep
from transfer_run.sweeps.record import Row
from transfer_run.tables.html import sweep as sweeps
from transfer_run.tables.html.page import Html, table, text
from transfer_run.tables.html.paper import table_page
from transfer_run.tables.html.runs import beside_it, write_report
from transfer_run.tables.produce import Cell
from transfer_run.tables.spec import read

BAD = "<script>document.title='taken'</script>"
KINDS = ("parameters", "gradients", "optimizer", "activations", "inputs", "other")
OWN = "dataset: {name: data, metrics: [accuracy]}"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def kinds(mib: float) -> dict[str, int]:
    return {kind: int(mib * 2**20) // (2 if kind == "activations" else 10) for kind in KINDS}


def make_run(root: Path, name: str, peak: float, score: float, read: str = "", **more: Any) -> Path:
    """The folder of a finished run, without the run.

    Args:
        read: more of its config, as YAML, for what it read.
    """
    folder = root / "runs" / "data" / name
    folder.mkdir(parents=True)
    phase = {"peak": int(peak * 2**20), "by_kind": kinds(peak)}
    memory = {
        "unit": "bytes", "source": "tracker", "peak": int(peak * 2**20), "peak_phase": "backward",
        "by_kind": kinds(peak),
        "predicted_peak": int(1.1 * peak * 2**20), "phases": {"forward": phase, "backward": phase, "between": phase},
        "predicted_phases": {"backward": {"peak": int(1.1 * peak * 2**20), "by_kind": kinds(1.1 * peak)}},
        "largest": [{"bytes": 2**20, "shape": [2, 3], "dtype": "float32", "kind": "activations", "module": BAD}],
    }  # fmt: skip
    result = {
        "schema": 1, "status": "finished", "identity": "ab" * 32, "method": name, "backbone": "tiny", "dataset": "data",
        "seed": 0, "metrics": {"test/accuracy": score}, "memory": memory, "time": {"fit_seconds": 1.5},
        "parameters": {"total": 10, "trainable": 5, "trainable_pct": 50.0}, "environment": {"git": BAD},
        "headline": {"metric": "test/accuracy", "better": "large"}, "extra": {"notes": [BAD]}, **more,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "config.yaml").write_text(f"{read or OWN}\nnote: {BAD}\n", encoding="utf-8")
    rows = "step,train/loss,validation/accuracy\n1,2.0,\n2,1.5,0.3\n3,nan,0.4\n4,1.0,0.5\n"
    (folder / "metrics.csv").write_text(rows, encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path, "full", 40.0, 0.9),
        make_run(tmp_path, "small", 10.0, 0.85),
        make_run(tmp_path, "poor", 20.0, 0.6),
    ]


def asks_nothing(page: str) -> bool:
    """No script, and nothing that a browser would fetch."""
    return not re.search(r"<script|<link|<img|<iframe|src=|url\(|@import|https?://|onclick|onload", page)


def test_the_report_of_a_run(runs: list[Path]) -> None:
    page = write_report(runs[0]).read_text(encoding="utf-8")
    assert asks_nothing(page)
    assert "&lt;script&gt;" in page
    assert '<td >forward</td><td class="figure">40.0 MiB</td><td class="figure">-</td>' in page
    assert '<td >backward</td><td class="figure">40.0 MiB</td><td class="figure">44.0 MiB</td>' in page
    assert '<td class="figure">+10.0 %</td>' in page
    assert "backward, predicted" in page
    assert "1 values that are no finite number are not drawn" in page
    assert "train/loss: 1.5 at step 2" in page
    assert "between" not in page.partition("Config")[0], "no phase of a step"
    front = re.findall(r"<td >(\w+)</td><td >tiny</td>.*?<td class=\"figure\">(yes|)</td></tr>", page)
    assert front == [("full", "yes"), ("poor", ""), ("small", "yes")]


def test_only_runs_that_can_be_compared_stand_beside_it(tmp_path: Path, runs: list[Path]) -> None:
    make_run(tmp_path, "other_metric", 1.0, 0.9, metrics={"test/error": 0.1}, headline={"metric": "test/error"})
    make_run(tmp_path, "other_backbone", 1.0, 0.9, backbone="large")
    make_run(tmp_path, "unmeasured", 1.0, 0.9, memory={})
    (tmp_path / "runs" / "data" / "unfinished").mkdir()
    assert [each.label for each in beside_it(runs[1])] == ["small", "full", "poor"]


def of_files(digest: str, dataset: str = "path: /somewhere") -> str:
    return f"dataset: {{name: data, metrics: [accuracy], {dataset}}}\ncontents: {{dataset.path: {digest}}}"


def test_a_run_on_other_rows_does_not_stand_beside_it(tmp_path: Path) -> None:
    """The same words with another file, other rows of it or other labels; the same file elsewhere is the same."""
    own = make_run(tmp_path, "own", 2.0, 0.5, of_files("a" * 32))
    make_run(tmp_path, "moved", 1.0, 0.4, of_files("a" * 32, "path: /elsewhere, batch_size: 7"))
    make_run(tmp_path, "other_file", 1.0, 0.9, of_files("b" * 32))
    make_run(tmp_path, "other_rows", 1.0, 0.9, of_files("a" * 32, "path: /somewhere, rows: 'run:method=dp4tl'"))
    make_run(tmp_path, "other_label", 1.0, 0.9, of_files("a" * 32, "path: /somewhere, label_column: mood"))
    make_run(tmp_path, "too_many_files", 1.0, 0.9, of_files("a" * 32 + "+sizes", "path: /elsewhere"))
    assert [each.label for each in beside_it(own)] == ["own", "moved"]


def test_each_data_file_of_a_sweep_has_a_front_of_its_own(tmp_path: Path) -> None:
    """A poor run on easy rows is no better than a good one on hard rows."""
    made = [
        make_run(tmp_path, "easy_full", 40.0, 0.99, of_files("a" * 32)),
        make_run(tmp_path, "hard_full", 40.0, 0.70, of_files("b" * 32, "path: /other")),
        make_run(tmp_path, "hard_probe", 10.0, 0.60, of_files("b" * 32, "path: /other")),
        make_run(tmp_path, "easy_probe", 10.0, 0.95, of_files("a" * 32)),
    ]
    asked = of_sweep(tmp_path, made)
    asked.folder.mkdir(parents=True)
    rows = [Row(member, State(FINISHED), {}) for member in asked.members]
    page = sweeps.write_report(asked, rows).read_text(encoding="utf-8")
    assert re.findall("<h3>(.*?)</h3>", page) == [
        "data: /somewhere, path holds aaaaaaaa",
        "data: /other, path holds bbbbbbbb",
    ]
    assert page.count("<svg") == 2
    front = re.findall(r"<td >(\w+)</td><td >tiny</td>.*?<td class=\"figure\">(yes|)</td></tr>", page)
    assert front == [(name, "yes") for name in ("easy_full", "easy_probe", "hard_full", "hard_probe")]


@pytest.mark.parametrize("more", [{"memory": {}}, {"headline": {}}, {"parameters": {}}, {"metrics": {}}, {"extra": {}}])
def test_a_run_that_lacks_something_has_a_report_without_it(tmp_path: Path, more: dict[str, Any]) -> None:
    folder = make_run(tmp_path, "a", 1.0, 0.5, **more)
    (folder / "metrics.csv").unlink()
    if "parameters" not in more and "metrics" not in more and "memory" not in more:
        make_run(tmp_path, "b", 2.0, 0.6, **more)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<h2>Curves</h2>" not in page
    assert ("no front" in page) == (more == {"headline": {}})


def test_a_run_that_has_not_finished_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has not finished"):
        write_report(tmp_path)
    for words in (["run=nowhere", "report=html"], [f"run={tmp_path}", "report=pdf"],
                  [f"run={tmp_path}", "report=html", "seed=1"], [f"run={tmp_path}", "report=html"]):  # fmt: skip
        assert exit_code(lambda words=words: command(words)) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_the_command_opens_a_finished_run_again(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command([f"run={runs[0]}", "report=html"]) == 0
    assert capsys.readouterr().out == f"report: {runs[0] / 'report.html'}\n"
    assert (runs[0] / "report.html").is_file()


def test_a_run_records_what_its_report_needs(shared_runs: Path) -> None:
    """Predicted memory by phase beside what was measured, and which side of the headline is the better one."""
    words = ["method=linear_probe", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "hardware=cpu"]
    run = compose([*words, "trainer.max_steps=2", "trainer.log_every=1", f"output_dir={shared_runs}", "report=html"])
    assert run.identity == compose([*words, "trainer.max_steps=2", "trainer.log_every=1"]).identity
    folder = carry_out(run)
    result = read_result(folder)
    assert result is not None
    assert result["headline"] == {"metric": "test/accuracy", "better": "large"}
    memory = result["memory"]
    measured = {name: phase["peak"] for name, phase in memory["phases"].items()}
    for name, phase in memory["predicted_phases"].items():
        assert set(phase) == {"peak", "by_kind"}
        assert name not in ("forward", "backward", "step") or phase["peak"] == pytest.approx(measured[name], rel=0.02)
    assert max(phase["peak"] for phase in memory["predicted_phases"].values()) == memory["predicted_peak"]


def of_sweep(tmp_path: Path, runs: list[Path]) -> Sweep:
    members = [Member(number, (f"method={run.name}", "seed=0", BAD), "x", run) for number, run in enumerate(runs, 1)]
    return Sweep(tmp_path / "sweeps" / "mine", [f"method={BAD}"], [], "basic", members)


def test_the_report_of_a_sweep(tmp_path: Path, runs: list[Path]) -> None:
    asked = of_sweep(tmp_path, [*runs, tmp_path / "gone"])
    asked.folder.mkdir(parents=True)
    write_report(runs[1])
    rows = [Row(member, State(FINISHED), {}) for member in asked.members[:-1]]
    rows.append(Row(asked.members[-1], State("failed", "it broke"), {}))
    page = sweeps.write_report(asked, rows).read_text(encoding="utf-8")
    assert asks_nothing(page)
    assert '<a href="../../runs/data/small/report.html">small</a>' in page
    assert (asked.folder / "../../runs/data/small/report.html").is_file()
    assert "failed" in page.partition("Without a score")[2]
    assert "<td >full</td>" in page


def cells_of(name: str, note: str = "") -> list[Cell]:
    spec = read(name)
    return [Cell(row.name, column.name, column.unit, row.paper.get(column.name), 2.0 + number, "plan", None, note)
            for number, row in enumerate(spec.rows) for column in spec.columns]  # fmt: skip


def test_the_page_of_a_table() -> None:
    page = table_page(read("lst/table1"), cells_of("lst/table1"))
    assert asks_nothing(page)
    assert "Pareto front of ours" in page
    assert page.count('fill="var(--ground)"') == 8, "the paper's points are hollow"
    assert "mean of the eight (%), paper" in page
    bars = table_page(read("side_tuning_family/layer_dropping"), cells_of("side_tuning_family/layer_dropping"))
    assert "<rect" in bars


def test_the_page_of_a_smoke_table_shows_no_figures() -> None:
    page = table_page(read("lst/table1"), cells_of("lst/table1", "smoke scale"))
    assert "cells that work" in page
    assert "<svg" not in page
    assert "17.6" not in page


def test_text_is_escaped_once() -> None:
    assert text("a < b") == "a &lt; b"
    assert text(Html("<b>x</b>")) == "<b>x</b>"
    assert table([BAD], [[BAD]]).count("&lt;script&gt;") == 2


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(runs: list[Path], scheme: str, tmp_path: Path) -> None:
    """The page is laid out: a ground of the scheme that the reader prefers, bars in their colours, no script run."""
    from matplotlib import image

    page, shot = write_report(runs[0]), tmp_path / "shot.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,1800",
               f"--user-data-dir={tmp_path / 'profile'}",
               f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]  # fmt: skip
    assert BROWSER is not None
    done = subprocess.run([BROWSER, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>full on tiny, data, seed 0</title>" in done.stdout, "no script has changed it"
    assert done.stdout.count("<svg") == 4
    subprocess.run(
        [BROWSER, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=120, check=True
    )
    drawn = (image.imread(shot)[..., :3] * 255).round().astype(int)
    light = {"ground": (255, 255, 255), "parameters": (11, 98, 184), "activations": (134, 57, 184)}
    dark = {"ground": (13, 17, 23), "parameters": (78, 161, 247), "activations": (188, 140, 245)}
    for name, colour in (light if scheme == "light" else dark).items():
        share = (abs(drawn - list(colour)).max(axis=2) <= 2).mean()
        assert share > (0.5 if name == "ground" else 0.001), name

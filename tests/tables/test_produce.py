"""Cells: plans, counts, means, recorded results, and what is said where there is no figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import inference_memory, plan_run
from transfer_run.tables import figures, plans, produce, render
from transfer_run.tables import spec as specs
from transfer_run.tables.produce import Cell, summary
from transfer_run.tables.spec import TableSpec


def quiet(_: str) -> None: ...


@pytest.fixture
def planned(small: TableSpec) -> dict[tuple[str, str], Cell]:
    return {(cell.row, cell.column): cell for cell in produce.produce(small, "plan", "paper", quiet)}


def test_ours_is_the_plan_of_the_cells_words(planned: dict[tuple[str, str], Cell], small: TableSpec) -> None:
    cfg = compose(small.cell_words(small.rows[1], small.columns[0], "paper"))
    memory = planned["lora", "memory"]
    assert memory.ours == pytest.approx(plan_run(cfg).memory["peak"] / 2**20)
    assert planned["lora", "infer"].ours == pytest.approx(inference_memory(cfg, 1)["peak"] / 2**20)
    assert memory.source == "plan"
    assert len(memory.identity or "") == 64
    sizes = cfg.config["backbone"]["architecture"]
    assert (
        planned["lora", "counted"].ours == 2 * 2 * 2 * sizes["depth"] * sizes["embed_dim"]
    )  # rank, both ends, q and v


def test_cells_without_a_figure_say_why(planned: dict[tuple[str, str], Cell]) -> None:
    assert planned["full", "a"].note == "needs --source run"
    assert planned["full", "mean"].note == "needs --source run"
    assert "no_such_method" in planned["gone", "memory"].note
    assert planned["theirs", "memory"].note == "not built here"
    assert planned["full", "speed"].note == "not produced by a run"
    empty = [cell for cell in planned.values() if cell.ours is None]
    assert all(cell.note for cell in empty)


def test_the_papers_figures_keep_their_marks(planned: dict[tuple[str, str], Cell]) -> None:
    assert planned["lora", "memory"].paper_source == "recalled"
    assert (planned["full", "mean"].paper, planned["full", "mean"].paper_source) == (85.0, "derived")
    assert (planned["lora", "mean"].paper, planned["lora", "mean"].paper_source) == (70, "")
    assert planned["gone", "mean"].paper is None


def test_a_row_marks_figures_that_were_computed_from_printed_ones(content: dict[str, Any]) -> None:
    content["rows"] = [{"row": "full", "words": None, "note": "no", "derived": ["memory"], "paper": {"memory": 5.0}}]
    cells = produce.produce(specs._spec("toy/small", content), "plan", "paper", quiet)
    assert cells[0].to_json()["paper_source"] == "derived"
    assert "paper_source" not in cells[1].to_json()


def test_a_plan_is_made_once(small: TableSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(figures, "_made", {})
    monkeypatch.setattr(figures, "_planned", lambda cfg: made.append(cfg.config["method"]["name"]) or {"peak": 2**20})
    for _ in range(2):
        produce.produce(small, "plan", "paper", quiet)
    assert sorted(made) == ["full", "lora"]


def test_what_breaks_a_cell_does_not_break_the_table(small: TableSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cfg: Any) -> Any:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr(figures, "_made", {})
    monkeypatch.setattr(figures, "_planned", broken)
    cells = produce.produce(small, "plan", "paper", quiet)
    memory = next(cell for cell in cells if (cell.row, cell.column) == ("full", "memory"))
    assert memory.ours is None
    assert memory.note == "RuntimeError: boom"
    assert any(cell.column == "counted" and cell.ours for cell in cells)
    figures._failed.clear()


def test_runs_give_scores_and_their_mean(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["rows"] = content["rows"][:1]
    content["seeds"] = [0, 1]
    table = specs._spec("toy/small", content)
    extra = [f"output_dir={tmp_path}", "trainer.progress=none"]
    cells = {cell.column: cell for cell in produce.produce(table, "run", "smoke", quiet, extra)}
    assert cells["a"].source == cells["memory"].source == "run"
    assert cells["counted"].source == "plan"
    assert cells["mean"].ours == pytest.approx(cells["a"].ours)
    result = json.loads(next(tmp_path.rglob("result.json")).read_text(encoding="utf-8"))
    assert cells["a"].ours == pytest.approx(100 * result["metrics"]["test/accuracy"])
    assert cells["memory"].ours == pytest.approx(result["memory"]["peak"] / 2**20)
    assert len(list(tmp_path.rglob("result.json"))) == 1, "one seed is enough at smoke scale"
    assert all("smoke scale" in cell.note for cell in cells.values() if cell.ours is not None)
    assert all(cell.difference is None for cell in cells.values())
    assert capsys.readouterr().out == "", "standard output is the table's"


def test_the_summary_counts_comparable_points_alone(small: TableSpec) -> None:
    def cell(row: str, ours: float, compared: bool = True) -> Cell:
        return Cell(row, "memory", "MiB", 10.0, ours, "plan", None, compared=compared)

    cells = [cell("full", 11.0), cell("lora", 7.0), cell("gone", 100.0, compared=False), cell("theirs", 10.0)]
    (line,) = summary(small, cells)
    assert line == "memory: median difference 10.0 %, worst -30.0 % (lora), over 3 comparable points"


def test_what_an_example_adds_to_what_is_kept_is_the_slope_of_the_plan() -> None:
    words = ("method=full", "backbone=vit_tiny", "backbone.weights=random", "dataset=digits", "dataset.batch_size=8")
    slope, _, _ = figures.ask(words, "per_example.kept", "plan")
    kept = [plan_run(compose([*words[:-1], f"dataset.batch_size={n}"])).memory["kept"] for n in (8, 16)]
    assert slope > 0
    assert slope == pytest.approx((kept[1] - kept[0]) / 8)


@pytest.mark.long
def test_what_vqt_keeps_is_what_was_measured() -> None:
    """Bytes alive when backward begins, beside those that autograd saved in the released class and in ours."""
    table = specs.read("vqt/saved_activations")
    for cell in produce.produce(table, "plan", "paper", quiet):
        if cell.ours is not None:
            assert cell.ours == pytest.approx(cell.paper, rel=0.01)


@pytest.mark.long
def test_many_plans_are_made_at_once_and_kept_for_the_next_time(
    small: TableSpec, planned: dict[tuple[str, str], Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    def once_more(cfg: Any) -> Any:
        raise AssertionError("planned in this process")

    monkeypatch.setattr(plans, "FOLDER", plans.FOLDER / "new")
    monkeypatch.setattr(plans, "POOL_FROM", 2)
    for name in ("_planned", "_inference", "_counted"):
        monkeypatch.setattr(figures, name, once_more)
    said: list[str] = []
    for _ in range(2):
        monkeypatch.setattr(figures, "_made", {})
        cells = produce.produce(small, "plan", "paper", said.append)
        assert {(cell.row, cell.column): cell for cell in cells} == planned
    assert sum("planned 6 of 6" in line for line in said) == 1, "the second time they are found on disk"


def test_a_changed_source_is_planned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ("memory", compose(["method=full", "backbone=vit_tiny", "dataset=digits"]))
    plans.remember(job, {"peak": 1})
    assert plans.recall(job) == {"peak": 1}
    assert plans.recall(("inference", job[1])) is None
    assert plans.recall(("memory", compose(["method=lora", "backbone=vit_tiny", "dataset=digits"]))) is None
    monkeypatch.setattr(plans, "_made_of", lambda: "another source")
    assert plans.recall(job) is None


def test_several_seeds_give_their_mean_and_spread(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard deviation with n - 1, in the column's unit, in all three forms; a column by plan has one figure."""
    scores = {"seed=0": 0.5, "seed=1": 0.6, "seed=2": 0.7}

    def ask(words: tuple[str, ...], value: str, source: str) -> tuple[float, str, str]:
        return scores.get(words[-1], 0.25), words[-1], source

    monkeypatch.setattr(produce, "ask", ask)
    monkeypatch.setattr(produce, "prepare", lambda *_: None)
    content["rows"], content["seeds"] = content["rows"][:1], [0, 1, 2]
    content["columns"]["speed"] = {"unit": "MiB", "from": "run", "value": "memory.peak", "once": True}
    table = specs._spec("toy/small", content)
    cells = produce.produce(table, "run", "paper", quiet)
    by_column = {cell.column: cell for cell in cells}
    a = by_column["a"]
    assert (a.ours, a.spread, a.seeds, a.identity) == (pytest.approx(60), pytest.approx(10), 3, "seed=0")
    speed = by_column["speed"]
    assert (speed.ours, speed.spread, speed.seeds, speed.identity) == (0.5, None, None, "seed=0")
    assert (by_column["counted"].spread, by_column["counted"].seeds) == (None, None)
    assert "| 60 ± 10 |" in render.as_markdown(table, cells)
    assert Cell(**a.to_json()).spread == a.spread
    assert "spread" not in by_column["counted"].to_json()
    assert "spread,seeds" in render.as_csv(cells).splitlines()[0]


def test_one_seed_has_no_spread(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "ask", lambda words, value, source: (0.5, "x", source))
    monkeypatch.setattr(produce, "prepare", lambda *_: None)
    content["rows"], content["seeds"] = content["rows"][:1], [0]
    cells = produce.produce(specs._spec("toy/small", content), "run", "paper", quiet)
    assert {cell.spread for cell in cells} == {None}
    assert "spread" not in render.as_csv(cells).splitlines()[0]


def test_a_damaged_plan_is_made_again() -> None:
    job = ("memory", compose(["backbone=vit_tiny", "dataset=digits"]))
    plans.remember(job, {"peak": 1})
    assert plans.recall(job) == {"peak": 1}
    next(plans.FOLDER.iterdir()).write_bytes(b'{"peak"')
    assert plans.recall(job) is None

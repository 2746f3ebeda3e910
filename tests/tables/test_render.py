"""Markdown, CSV, JSON, the picture, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from transfer_run.cli.exits import exit_code
from transfer_run.cli.table import HELP, show
from transfer_run.tables import figures, produce
from transfer_run.tables import spec as specs
from transfer_run.tables.picture import picture
from transfer_run.tables.produce import Cell
from transfer_run.tables.render import as_csv, as_json, as_markdown
from transfer_run.tables.sheet import figure
from transfer_run.tables.spec import TableSpec


@pytest.fixture
def cells(small: TableSpec) -> list[Cell]:
    """Made by hand: nothing is planned here."""
    figures = {("full", "memory"): 22.0, ("lora", "memory"): 9.0, ("full", "counted"): 123456.0}
    made = []
    for row in small.rows:
        for column in small.columns:
            ours, paper = figures.get((row.name, column.name)), row.paper.get(column.name)
            mark = "recalled" if column.name in row.recalled else ""
            note = "" if ours is not None else "needs --source run"
            made.append(Cell(row.name, column.name, column.unit, paper, ours, "plan", None, note, mark))
    return made


def test_markdown_has_paper_ours_and_difference(small: TableSpec, cells: list[Cell]) -> None:
    text = as_markdown(small, cells)
    assert "| row | memory (MiB), paper | ours | difference | counted (parameters), ours |" in text
    assert "| full | 20 | 22 | +10.0 % | 123,456 |" in text
    assert "| lora | 10* | 9 | -10.0 % |" in text
    assert "* the paper's figure is recalled" in text
    assert text.rstrip().endswith("over 2 comparable points")


def test_a_table_of_several_units_names_them_by_row(content: dict[str, Any]) -> None:
    content["rows"] = [{"row": "x", "words": "method=full", "unit": "GB", "divide": 1e9, "counter": "smi",
                        "compared": False, "paper": {"memory": 2.0}}]  # fmt: skip
    table = specs._spec("toy/small", content)
    cells = [Cell("x", column.name, column.unit, None, None, "plan", None, "why") for column in table.columns]
    cells[0] = Cell("x", "memory", "GB", 2.0, 1.0, "plan", None, "", "", "smi", False)
    text = as_markdown(table, cells)
    assert "| unit | counter | compared |" in text
    assert "| x | 2 | 1 | -50.0 % | GB | smi | no |" in text


def of_smoke(cells: list[Cell]) -> list[Cell]:
    return [replace(cell, note="; ".join(filter(None, (cell.note, "smoke scale"))), compared=False, identity="ab")
            for cell in cells]  # fmt: skip


def test_a_table_of_smoke_scale_says_what_ran_and_no_figure(small: TableSpec, cells: list[Cell]) -> None:
    """Neither the paper's figures nor ours stand there, in no form that people read."""
    marked = of_smoke(cells)
    text = as_markdown(small, marked)
    assert "SMOKE SCALE" in text
    assert "| full | 2 of 6 | 1 | backbone=vit_tiny backbone.weights=random dataset=digits" in text
    assert "| theirs | 0 of 0 | 0 |  |" in text
    assert text.rstrip().endswith("15 of 18 cells do not work.")
    assert "- needs --source run: full/infer, full/a, full/b, full/mean and 21 more" in text
    for seen in (" 20 |", " 22 |", " 10* |", "difference", "paper |", "%"):
        assert seen not in text
    lines = list(csv.DictReader(io.StringIO(as_csv(marked))))
    assert {line["paper"] for line in lines} == {""}
    assert {line["ours"] for line in lines} > {"22.0", "9.0"}
    content = json.loads(as_json(small, marked))
    assert content["scale"] == "smoke"
    assert all(cell["compared"] is False for cell in content["cells"])


def test_a_smoke_table_whose_cells_all_work_says_so(small: TableSpec, cells: list[Cell]) -> None:
    text = as_markdown(small, of_smoke([replace(cell, ours=1.0, note="") for cell in cells]))
    assert text.rstrip().endswith("All 18 cells work.")
    assert "| full | 6 of 6 |" in text


def test_a_smoke_table_of_which_nothing_works_is_one_still(small: TableSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(produce, "ask", broken)
    monkeypatch.setattr(produce, "prepare", lambda *_: None)
    cells = produce.produce(small, "plan", "smoke", lambda _: None)
    assert all(cell.ours is None for cell in cells)
    assert "difference" not in as_markdown(small, cells)
    assert "18 of 18 cells do not work." in as_markdown(small, cells)


def test_json_is_the_contracts(small: TableSpec, cells: list[Cell]) -> None:
    content = json.loads(as_json(small, cells))
    assert content["table"] == "toy/small"
    first = content["cells"][0]
    assert list(first) == ["row", "column", "unit", "paper", "ours", "source", "identity", "note"]
    lora = next(cell for cell in content["cells"] if (cell["row"], cell["column"]) == ("lora", "memory"))
    assert lora["paper_source"] == "recalled"
    assert all(cell["note"] for cell in content["cells"] if cell["ours"] is None)


def test_csv_has_a_line_a_cell(cells: list[Cell]) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(cells))))
    assert len(lines) == len(cells)
    assert lines[0]["ours"] == "22.0"


def test_figures_for_people() -> None:
    assert [figure(x) for x in (None, 0.86321, 17.6, 222882048.0, 12345.6)] == ["", "0.8632", "17.6", "222,882,048",
                                                                              "1.235e+04"]  # fmt: skip


@pytest.mark.parametrize("axes", [{"x": "memory", "y": "mean"}, {"x": "memory"}, None])
def test_a_picture_of_every_kind(
    small: TableSpec, cells: list[Cell], tmp_path: Path, axes: dict[str, str] | None
) -> None:
    from matplotlib import image

    path = tmp_path / "a" / "picture.png"
    picture(replace(small, picture=axes), cells, path)
    drawn = image.imread(path)
    assert drawn.shape[1] > 800
    assert drawn[..., :3].std() > 0.05, "not an empty page"


def test_a_table_without_figures_says_so(small: TableSpec, tmp_path: Path) -> None:
    columns = [(row.name, column.name) for row in small.rows for column in small.columns]
    empty = [Cell(*place, "", None, None, "plan", None, "why") for place in columns]
    picture(small, empty, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000
    assert as_markdown(small, empty).count("|") == 0


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that take no time and come to as many MiB as the batch has examples."""
    monkeypatch.setattr(figures, "_made", {})
    for name in ("_planned", "_inference"):
        monkeypatch.setattr(figures, name, lambda cfg: {"peak": 2**20 * cfg.config["dataset"]["batch_size"]})
    monkeypatch.setattr(figures, "_counted", lambda cfg: {"counted": 7})


@pytest.mark.usefixtures("instant")
def test_the_command_prints_one_form_and_writes_all(
    shipped: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show([shipped, "--format", "json", "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert json.loads(shown.out)["table"] == "toy/small"
    assert "toy/small: 6 of 28 cells by us" in shown.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["toy_small.csv", "toy_small.html", "toy_small.json", "toy_small.md", "toy_small.png"]
    assert json.loads((tmp_path / "out" / "toy_small.json").read_text(encoding="utf-8")) == json.loads(shown.out)


@pytest.mark.usefixtures("instant")
def test_overrides_reach_every_cell(shipped: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = []
    for words in ([], ["dataset.batch_size=256"]):
        show([shipped, *words, "--format", "json", "--out", str(tmp_path)])
        peaks.append(json.loads(capsys.readouterr().out)["cells"][0]["ours"])
    assert peaks[1] == 256 > peaks[0]


def test_wrong_words_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: show(["lst/table11"])) == 2
    assert "nearest: lst/table1" in capsys.readouterr().err
    assert exit_code(lambda: show(["lst/table1", "--source", "guess"])) == 2
    show([])
    assert HELP.strip() in capsys.readouterr().out


def test_a_table_without_a_papers_figures_does_not_call_its_own_ours(small: TableSpec, cells: list[Cell]) -> None:
    text = as_markdown(small, [replace(cell, paper=None) for cell in cells])
    assert "| row | memory (MiB) | counted (parameters) |" in text
    assert "ours" not in text

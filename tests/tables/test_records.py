"""Recorded results: written on request, read back, marked; and those that the repository holds."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from transfer_run.cli.exits import exit_code
from transfer_run.cli.table import show
from transfer_run.errors import UserError
from transfer_run.tables import records
from transfer_run.tables.picture import _title
from transfer_run.tables.produce import SMOKE, Cell
from transfer_run.tables.render import as_csv, as_json, as_markdown
from transfer_run.tables.spec import TableSpec, read

HELD = sorted(records.recorded_file("x").parent.glob("*.json"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results are recorded in these tests."""
    place = tmp_path / "recorded" / "tables"
    place.mkdir(parents=True)
    monkeypatch.setattr(records, "recorded_file", lambda name: place / f"{name.replace('/', '_')}.json")
    return place


def cell(note: str = "", ours: float | None = 19.0) -> Cell:
    return Cell("full", "memory", "MiB", 20.0, ours, "run", "0" * 64, note, counter="allocated", compared=False)


def test_cells_come_back_with_the_environment_that_made_them(small: TableSpec, folder: Path) -> None:
    with pytest.raises(UserError, match="Nothing has been recorded"):
        records.recorded(small)
    path = records.record(small, [cell()])
    (back,) = records.recorded(small)
    assert back == replace(cell(), source="recorded")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["environment"]["torch"]
    assert "scale" not in content


def test_smoke_is_marked_and_replaces_nothing_but_smoke(small: TableSpec, folder: Path) -> None:
    for ours in (1.0, 2.0):
        path = records.record(small, [cell(SMOKE, ours)])
    assert json.loads(path.read_text(encoding="utf-8"))["scale"] == "smoke"
    path.unlink()
    records.record(small, [cell()])
    with pytest.raises(UserError, match="smoke does not replace it"):
        records.record(small, [cell(SMOKE)])
    with pytest.raises(UserError, match="No cell"):
        records.record(small, [cell("why", None)])


def test_only_runs_are_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: show(["lst/table1", "--record"])) == 2
    assert "--source run" in capsys.readouterr().err


def test_the_repository_holds_results() -> None:
    assert HELD


@pytest.mark.parametrize("path", HELD, ids=lambda path: path.stem)
def test_a_held_result_fits_its_table_and_marks_its_scale(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    table = read(content["table"])
    assert records.recorded_file(table.name) == path
    cells = records.recorded(table)
    assert [(c.row, c.column) for c in cells] == [(r.name, c.name) for r in table.rows for c in table.columns]
    papers = {row.name: row.paper for row in table.rows}
    assert all(papers[c.row].get(c.column) in (c.paper, None) for c in cells), "the paper's figures have changed since"
    if content.get("scale") == "smoke":
        assert all(SMOKE in c.note for c in cells if c.ours is not None)
        assert "SMOKE SCALE" in as_markdown(table, cells)
        assert "difference" not in as_markdown(table, cells)
        assert json.loads(as_json(table, cells))["scale"] == "smoke"
        assert "smoke scale" in _title(table, cells)
        lines = csv.DictReader(io.StringIO(as_csv(cells)))
        assert all(SMOKE in line["note"] for line in lines if line["ours"])

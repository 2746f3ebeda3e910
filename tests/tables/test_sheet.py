"""A table on a terminal: nothing is lost, and no line is longer than the terminal is wide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from transfer_run.cli.table import show
from transfer_run.tables.sheet import Group, Sheet, in_markdown, in_terminal

FIGURES = Group("a memory (GiB)", ("paper", "ours", "difference"))


def of(groups: int, rows: int) -> Sheet:
    """Figures that are all different: 1, 2, 3, ..."""
    names = [Group("row"), *(Group(f"column {number} (GiB)", ("paper", "ours")) for number in range(groups))]
    numbers = iter(range(100, 100 + 2 * groups * rows))
    lines = [[f"row {row}", *(str(next(numbers)) for _ in range(2 * groups))] for row in range(rows)]
    return Sheet("toy/table: a title", "", names, lines, ["a note"], ["the summary"])


@pytest.mark.parametrize(("groups", "rows"), [(1, 3), (12, 2), (12, 40), (3, 1), (40, 9)])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_figure_stands_there_once_and_every_line_fits(groups: int, rows: int, width: int) -> None:
    text = in_terminal(of(groups, rows), width)
    assert max(map(len, text.splitlines())) <= width
    found = sorted(int(number) for number in re.findall(r"\b\d{3,}\b", text))
    assert found == list(range(100, 100 + 2 * groups * rows))


def test_a_narrow_table_is_laid_out_as_it_stands() -> None:
    text = in_terminal(Sheet("t", "", [Group("row"), FIGURES], [["full", "20", "22", "+10.0 %"]]), 80)
    assert text.splitlines()[2:] == [
        "row   a memory (GiB)",
        "      paper  ours  difference",
        "─────────────────────────────",
        "full     20    22     +10.0 %",
    ]


def test_few_rows_and_many_columns_are_turned() -> None:
    lines = in_terminal(of(12, 2), 80).splitlines()
    assert lines[2].split() == ["row", "0", "row", "1"]
    assert lines[4].split() == ["column", "0", "(GiB),", "paper", "100", "124"]


def test_many_rows_and_many_columns_stand_in_blocks() -> None:
    lines = in_terminal(of(12, 40), 80).splitlines()
    heads = [line for line in lines if line.startswith("row  ")]
    assert len(heads) > 1
    assert sum(line.startswith("row 39 ") for line in lines) == len(heads), "each block names every row"


def test_text_is_wrapped_beside_figures() -> None:
    words = " ".join(f"key{number}=value" for number in range(30))
    text = in_terminal(Sheet("t", "", [Group("row"), Group("n"), Group("what ran")], [["full", "7", words]]), 70)
    assert re.findall(r"key\d+=value", text) == words.split()
    assert max(map(len, text.splitlines())) <= 70
    assert text.count("row") == 1, "one block"


def test_the_markdown_is_never_cut() -> None:
    head = in_markdown(of(40, 2)).splitlines()[2]
    assert head.count("|") == 82


@pytest.mark.parametrize("tty", [True, False])
def test_a_pipe_gets_the_files_text_and_a_terminal_what_fits_it(
    tty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: tty)
    monkeypatch.setenv("COLUMNS", "72")
    show(["vqt/demo_hparams", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    whole = (tmp_path / "vqt_demo_hparams.md").read_text(encoding="utf-8")
    assert whole.startswith("## vqt/demo_hparams")
    assert (shown.strip() == whole.strip()) != tty
    assert not tty or max(map(len, shown.splitlines())) <= 72

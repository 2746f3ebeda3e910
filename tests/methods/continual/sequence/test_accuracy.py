"""The matrix of accuracies and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_run.methods.continual.sequence.accuracy import AccuracyMatrix

TASKS = ("low", "middle", "high")


def matrix(after: list[list[float]]) -> AccuracyMatrix:
    return AccuracyMatrix(TASKS, np.array([0.3, 0.3, 0.3]), np.array(after), np.array([10, 30, 60]))


def test_a_constant_matrix_says_the_constant() -> None:
    said = matrix([[0.6] * 3] * 3).summary()
    same = dict.fromkeys(("transfer", "average", "last", "seen", "seen_last"), 0.6)
    assert said == pytest.approx({"zero_shot": 0.3, **same})


def test_nothing_above_the_diagonal_is_no_transfer() -> None:
    said = matrix([[0.9, 0, 0], [0.9, 0.9, 0], [0.9, 0.9, 0.9]])
    assert said.summary()["transfer"] == 0
    assert said.summary()["last"] == pytest.approx(0.9)
    assert said.by_task()["average"] == pytest.approx({"low": 0.9, "middle": 0.6, "high": 0.3})
    assert list(said.by_task()["transfer"]) == ["middle", "high"]


def test_table_and_picture_show_every_cell(tmp_path: Path) -> None:
    shown = matrix([[0.9, 0.2, 0.31], [0.8, 0.95, 0.41], [0.7, 0.9, 0.99]])
    lines = shown.table()
    assert lines[2].split() == ["after", "low", "90.0*", "20.0", "31.0"]
    assert lines[4].split() == ["after", "high", "70.0", "90.0", "99.0*"]
    assert lines[5].split() == ["transfer", "20.0", "36.0"]
    assert lines[-2] == "zero-shot 30.0, transfer 28.0, average 68.4, last 86.3 (%, over tasks)"
    shown.draw(tmp_path / "matrix.png")
    assert len(set(Image.open(tmp_path / "matrix.png").convert("RGB").getdata())) > 50


def test_training_cut_short_says_only_what_is_known(tmp_path: Path) -> None:
    cut = AccuracyMatrix(TASKS, np.array([0.3, 0.3, 0.3]), np.array([[0.9, 0.2, 0.3]]), np.array([10, 30, 60]))
    assert set(cut.summary()) == {"zero_shot"}
    assert not cut.by_task()
    assert len(cut.table()) == 4
    cut.draw(tmp_path / "matrix.png")
    none = AccuracyMatrix(TASKS, np.full(3, np.nan), np.empty((0, 3)), np.zeros(3, dtype=np.int64))
    assert none.summary() == {}


def test_the_rows_of_all_tasks_so_far_are_counted_together() -> None:
    """10, 30 and 60 rows: 9 of 10 right, then 5 + 27 of 40, then 2 + 21 + 54 of 100."""
    said = matrix([[0.9, 0.2, 0.2], [0.5, 0.9, 0.2], [0.2, 0.7, 0.9]])
    assert said.seen() == pytest.approx([9 / 10, 32 / 40, 77 / 100])
    assert said.summary()["seen"] == pytest.approx((0.9 + 0.8 + 0.77) / 3)
    assert said.summary()["seen_last"] == pytest.approx(0.77)
    assert said.table()[-1] == "seen 82.3, seen-last 77.0 (%, over rows of tasks so far)"


def test_tasks_without_labels_say_nothing_of_what_was_seen() -> None:
    shares = np.full((3, 3), np.nan)
    none = AccuracyMatrix(TASKS, np.full(3, np.nan), shares, np.zeros(3, dtype=np.int64))
    assert none.summary() == {}

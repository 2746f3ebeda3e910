"""Flips, shares and rates of answers whose right values are plain to see."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from transfer_run.methods.distillation.transfer.knowledge import (
    Answers,
    answers,
    by_class,
    ensemble,
    entropy,
    leading,
    of_pair,
    only,
    pairs,
    transfer_rates,
)
from transfer_run.methods.distillation.transfer.report import PICTURE, conclusions

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
STUDENT = np.array([1, 1, 1, 1, 1, 2, 2, 0]) == LABELS  # right: 3, 4, 5, 6
TEACHER = np.array([0, 0, 1, 1, 0, 2, 0, 2]) == LABELS  # right: 0, 1, 3, 5, 7


def test_flips_are_the_difference_of_accuracies() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        a, b = draw.random(50) < 0.7, draw.random(50) < 0.4
        assert only(a, b).mean() - only(b, a).mean() == pytest.approx(a.mean() - b.mean())
    shares = pairs(np.stack([STUDENT, TEACHER]))
    assert shares.tolist() == [[0, 2 / 8], [3 / 8, 0]]


def test_classes_of_the_flips() -> None:
    counts = by_class(only(TEACHER, STUDENT), LABELS, 4)
    assert counts.tolist() == [2, 0, 1, 0]
    assert entropy(counts) == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert entropy(np.zeros(3, dtype=np.int64)) == 0
    assert leading(counts, 2).tolist() == [0]
    assert leading(counts, 66).tolist() == [0]
    assert leading(counts, 67).tolist() == [0, 2]
    assert leading(counts, 100).tolist() == [0, 2]
    assert leading(np.zeros(3, dtype=np.int64), 50).tolist() == []


def test_transfer_rates() -> None:
    positive = only(TEACHER, STUDENT)  # 0, 1 of class 0 and 7 of class 2
    after = np.array([1, 0, 0, 1, 1, 1, 0, 1], dtype=bool)
    found = transfer_rates(positive, after, LABELS, 3)
    assert found["top_2"] == 0.5
    assert found["top_100"] == pytest.approx(2 / 3)
    assert transfer_rates(np.zeros(8, dtype=bool), after, LABELS, 3) == {}


def test_an_ensemble_answers_by_the_surer_one_and_the_first_wins_ties() -> None:
    sure = np.array([[0.9, 0.5, 0.6], [0.8, 0.7, 0.6]], dtype=np.float32)
    right = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
    assert ensemble(sure, right) == 1.0
    assert ensemble(sure[::-1], right) == pytest.approx(2 / 3 - 1 / 3)


def test_answers_leave_out_what_has_no_label(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    batches = [{"labels": torch.tensor([0, -100, 1])}]
    found = answers({"a": lambda batch: logits, "b": lambda batch: -logits}, batches)
    assert found.said.tolist() == [[0, 0], [1, 1]]
    assert found.labels.tolist() == [0, 1]
    assert found.sure[0, 0] == pytest.approx(math.exp(2) / (1 + math.exp(2)))
    found.write(tmp_path / "a.npz")
    again = Answers.read(tmp_path / "a.npz")
    assert again.names == ("a", "b")
    assert np.array_equal(again.right, found.right)


def test_what_is_concluded(tmp_path: Path) -> None:
    def said(right: np.ndarray) -> np.ndarray:
        return np.where(right, LABELS, (LABELS + 1) % 3)

    after = np.array([1, 0, 0, 1, 1, 0, 1, 1], dtype=bool)
    sure = np.full((2, 8), 0.5, dtype=np.float32)
    before = Answers(("student", "teacher"), np.stack([said(STUDENT), said(TEACHER)]), sure, LABELS)
    end = Answers(("student after",), said(after)[None], sure[:1], LABELS)
    found = conclusions(before, end, ["a", "b", "c"], "test", tmp_path)
    metrics = found["metrics"]
    assert metrics["delta_transf"] == pytest.approx(1 / 8)
    assert (metrics["knowledge_gain"], metrics["knowledge_loss"]) == (2 / 8, 1 / 8)
    assert metrics["success"] == 1
    assert metrics["teacher/transfer_rate"] == pytest.approx(2 / 3)
    assert metrics["teacher/ensemble"] == pytest.approx(STUDENT.mean()), "ties: the student answers"
    assert found["complementary"]["teachers"][0]["by_class"] == {"a": 2, "c": 1}
    assert (tmp_path / PICTURE).stat().st_size > 5_000
    assert any("2 24" in line or "a 2, c 1" in line for line in found["table"])


def test_after_the_transfer_flips_are_counted_anew() -> None:
    told = of_pair("t", TEACHER, STUDENT, TEACHER, LABELS, ["a", "b", "c"])
    assert told["positive_flips"] == 3 / 8
    assert told["positive_flips_after"] == told["negative_flips_after"] == 0

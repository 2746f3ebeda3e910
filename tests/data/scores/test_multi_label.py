"""Scores of several labels a row against a plain computation of each, on random and on degenerate rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transfer_run.data.scores.multi_label import SCORES, MultiLabelScores
from transfer_run.errors import UserError
from transfer_run.task import Task


def f1(right: np.ndarray, said: np.ndarray) -> float:
    """2 * both / (there + answered); 0 of nothing."""
    total = right.sum() + said.sum()
    return 2 * float((right & said).sum()) / float(total) if total else 0.0


def average_precision(there: np.ndarray, chances: np.ndarray) -> float:
    """Mean over the rows that are there of the precision among all that stand as high."""
    order = sorted(set(chances[there].tolist()), reverse=True)
    parts = [(there & (chances >= at)).sum() / (chances >= at).sum() * (there & (chances == at)).sum() for at in order]
    return float(sum(parts) / there.sum())


def ranking(there: np.ndarray, chances: np.ndarray) -> float:
    """Of one row: how many of the labels that stand as high as each of its own are its own."""
    if not there.any() or there.all():
        return 1.0
    own = np.flatnonzero(there)
    return float(np.mean([(there & (chances >= chances[n])).sum() / (chances >= chances[n]).sum() for n in own]))


def plainly(right: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    right, said, labels = right > 0, chances > 0.5, range(right.shape[1])
    there = [n for n in labels if right[:, n].any()]
    return {
        "micro_f1": f1(right, said),
        "macro_f1": float(np.mean([f1(right[:, n], said[:, n]) for n in labels])),
        "samples_f1": float(np.mean([f1(a, b) for a, b in zip(right, said, strict=True)])),
        "subset_accuracy": float(np.mean([(a == b).all() for a, b in zip(right, said, strict=True)])),
        "mean_average_precision": float(
            np.mean([average_precision(right[:, n], chances[:, n]) for n in there]) if there else 0.0
        ),
        "ranking_average_precision": float(np.mean([ranking(a, b) for a, b in zip(right, chances, strict=True)])),
    }


def inputs() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(11)
    found = [((random.random((n, c)) < 0.4).astype(int), random.random((n, c))) for n, c in ((60, 5), (3, 4), (1, 2))]
    tied = (random.random((30, 4)) < 0.5).astype(int), random.integers(0, 3, (30, 4)) / 2
    nothing_there, all_there = (
        (np.zeros((4, 3), int), random.random((4, 3))),
        (np.ones((4, 3), int), np.full((4, 3), 0.9)),
    )
    absent = np.array([[1, 0, 0], [1, 1, 0]]), np.array([[0.9, 0.1, 0.8], [0.2, 0.7, 0.1]])
    nothing_said = (random.random((5, 3)) < 0.5).astype(int), np.zeros((5, 3))
    one_label = np.array([[1], [0], [1]]), np.array([[0.9], [0.8], [0.1]])
    return [*found, tied, nothing_there, all_there, absent, nothing_said, one_label]


@pytest.mark.filterwarnings("error")
def test_every_score_is_what_a_plain_computation_gives() -> None:
    for right, chances in inputs():
        chances = chances.astype(np.float32)
        scores = MultiLabelScores(Task("multi_label", right.shape[1], metrics=tuple(SCORES)))
        for at in range(0, len(right), 7):
            batch = {"labels": torch.tensor(right[at : at + 7]).float()}
            scores.update(torch.tensor(chances[at : at + 7]), batch)
        assert scores.compute() == pytest.approx(plainly(right, chances), abs=1e-9), (right, chances)


def test_rows_without_labels_are_not_scored() -> None:
    scores = MultiLabelScores(Task("multi_label", 2, metrics=("micro_f1",)))
    assert scores.compute() == {}
    scores.update(torch.ones(1, 2), {"labels": torch.full((1, 2), -100.0)})
    assert scores.compute() == {}
    scores.update(torch.tensor([[0.9, 0.1]]), {"labels": torch.tensor([[1.0, 0.0]])})
    assert scores.compute() == {"micro_f1": 1.0}
    scores.reset()
    assert scores.compute() == {}


def test_another_metric_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        MultiLabelScores(Task("multi_label", 2, metrics=("accuracy",)))
    assert "subset_accuracy" in caught.value.remedy

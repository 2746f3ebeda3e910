"""`by_class` against scikit-learn, and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from transfer_run.data.scores.by_class import ByClass, confusion
from transfer_run.data.scores.labels import Scores
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.record.confusion import draw
from transfer_run.task import Task

NAMES = ("a", "b c", "d/e", "none")


@pytest.mark.parametrize("seed", range(4))
def test_the_scores_are_scikit_learns(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    right, said = drawn.integers(0, 4, 60), drawn.integers(0, 4, 60)
    score = ByClass(NAMES)
    for begin in range(0, 60, 7):
        score.update(torch.tensor(said[begin : begin + 7]), torch.tensor(right[begin : begin + 7]))
    found = score.compute()
    expected = precision_recall_fscore_support(right, said, labels=range(4), zero_division=0)
    for kind, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        assert [found[f"{kind}/{name}"] for name in NAMES] == pytest.approx(values.tolist())
    metrics = {f"test/{name}": value for name, value in found.items()}
    assert confusion(metrics, NAMES) == confusion_matrix(right, said, labels=range(4)).tolist()


def test_absent_classes_and_answers_that_are_none() -> None:
    score = ByClass(("a", "b", "c"))
    score.update(torch.tensor([0, 1, -1, 7]), torch.tensor([0, 0, 0, 1]))
    found = score.compute()
    assert found["recall/a"] == pytest.approx(1 / 3)
    assert found["precision/c"] == 0
    assert {"recall/c", "f1/c"}.isdisjoint(found)
    assert found["confusion/a/(none)"] == found["confusion/b/(none)"] == 1
    assert "confusion/c/(none)" not in found


def test_beside_other_metrics_of_a_task() -> None:
    scores = Scores(Task("classification", 2, ("no", "yes"), ("accuracy", "by_class")))
    scores.update(torch.tensor([0, 1, 1]), {"labels": torch.tensor([0, 1, 0])})
    found = scores.compute()
    assert next(iter(found)) == "accuracy"
    assert found["recall/no"] == 0.5
    assert scores.better(1.0, 0.0)


def test_what_cannot_be_scored_so_is_refused() -> None:
    words = ["method=full", "backbone=vit_tiny", "dataset=digits"]
    with pytest.raises(UserError, match="many numbers"):
        compose([*words, "dataset.metrics=[by_class,accuracy]"])
    many = ["method=full", "backbone=vit_tiny", "dataset=image_folder", "dataset.path=.", "dataset.num_labels=101"]
    with pytest.raises(UserError, match="every pair of classes"):
        compose([*many, "dataset.metrics=[accuracy,by_class]"])
    with pytest.raises(UserError, match="by_class"):
        compose(["method=full", "backbone=bert_tiny", "dataset=glue/stsb", "dataset.metrics=[pearson,by_class]"])


def test_its_picture(tmp_path: Path) -> None:
    draw(tmp_path / "confusion.png", NAMES, np.eye(4).tolist())
    assert (tmp_path / "confusion.png").stat().st_size > 5_000

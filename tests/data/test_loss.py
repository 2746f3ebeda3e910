"""Class weights and label smoothing, from the config to the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.data.conftest import data_of, nodes
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_task
from transfer_run.data.loss import balanced, check_loss
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.entropy import cross_entropy
from transfer_run.task import Task

DIGITS = ("dataset=digits", "backbone=vit_tiny", "dataset.classes=[1,4,8]")


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 3], [50, 7, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    found = balanced(np.bincount(labels, minlength=5).tolist())
    assert found[2] == found[4] == 0
    assert np.allclose([found[0], found[1], found[3]], expected)


def test_counts_are_those_of_the_rows_that_train(tmp_path: Any) -> None:
    whole = data_of(*DIGITS)
    labels = whole.labels("train")
    assert whole.class_counts.tolist() == [int((labels == n).sum()) for n in range(3)]
    rows = [*np.flatnonzero(labels == 0)[:6], *np.flatnonzero(labels == 2)[:2]]
    (tmp_path / "rows.json").write_text(f'{{"rows": {{"train": {[int(row) for row in rows]}}}}}')
    part = data_of(*DIGITS, f"dataset.rows={tmp_path / 'rows.json'}", "dataset.class_weights=balanced")
    assert part.class_counts.tolist() == [6, 0, 2]
    assert part.task.class_weights == pytest.approx((8 / 12, 0, 2))


@pytest.mark.parametrize("answers", ["head", "names"])
def test_texts_are_counted_however_a_model_answers(answers: str) -> None:
    data = data_of("dataset=python_docs", "backbone=t5_tiny", f"dataset.answers={answers}")
    assert data.class_counts.sum() == data.sizes["train"]
    assert len(data.class_counts) == 8
    assert set(data.labels("train")) == set(range(8))


def test_running_text_and_values_have_no_classes() -> None:
    data = data_of("dataset=python_docs", "backbone=t5_tiny", "dataset.task=span_corruption")
    with pytest.raises(UserError, match="have no classes"):
        _ = data.class_counts


def test_a_plan_knows_the_weights_without_data() -> None:
    task = build_task(*nodes(*DIGITS, "dataset.class_weights=balanced", "dataset.label_smoothing=0.1"))
    assert task.class_weights == (1, 1, 1)
    assert task.label_smoothing == 0.1
    assert build_task(*nodes(*DIGITS)) == build_task(*nodes(*DIGITS, "dataset.class_weights=null"))


def test_the_loss_weighs_and_smooths_in_training_alone() -> None:
    data = data_of(*DIGITS, "dataset.class_weights=[1,2,5]", "dataset.label_smoothing=0.2")
    method = Method(build_backbone(data.backbone, weights=False), data.task)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -100, 0])
    expected = F.cross_entropy(logits, labels, torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.2)
    assert torch.equal(method.train().task_loss(logits, labels), expected)
    assert torch.equal(method.eval().task_loss(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("form", ["text_to_text", "language_modeling"])
def test_labels_of_tokens_are_smoothed(form: str) -> None:
    logits, labels = torch.randn(4, 9), torch.tensor([3, -100, 0, 8])
    found = cross_entropy(logits, labels, Task(form, 0, label_smoothing=0.1), training=True)
    assert torch.equal(found, F.cross_entropy(logits, labels, label_smoothing=0.1))
    check_loss({"name": "d", "label_smoothing": 0.1}, form)


@pytest.mark.parametrize(
    ("keys", "form", "says"),
    [
        ({"class_weights": "balanced"}, "text_to_text", "whose loss has no class_weights"),
        ({"class_weights": "balanced"}, "regression", "whose loss has no class_weights"),
        ({"label_smoothing": 0.1}, "regression", "whose loss has no label_smoothing"),
        ({"label_smoothing": 0.1}, "retrieval", "whose loss has no label_smoothing"),
        ({"label_smoothing": 0.1, "tasks": ["a"]}, "classification", "one task after another"),
        ({"label_smoothing": 1.0}, "classification", "nothing of the label"),
        ({"class_weights": "balance"}, "classification", "neither 'balanced' nor a list"),
        ({"class_weights": [1, -2]}, "classification", "neither 'balanced' nor a list"),
        ({"class_weights": [0, 0]}, "classification", "not all 0"),
        ({"class_weights": []}, "classification", "neither 'balanced' nor a list"),
        ({"class_weights": False}, "classification", "neither 'balanced' nor a list"),
        ({"class_weights": [1, 2], "num_labels": 3}, "classification", "2 weights for 3 classes"),
    ],
)
def test_what_the_loss_has_no_place_for_is_refused(keys: dict[str, Any], form: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_loss({"name": "d", **keys}, form)


def test_a_weight_for_every_class() -> None:
    with pytest.raises(UserError, match="2 weights for 3 classes"):
        build_task(*nodes(*DIGITS, "dataset.class_weights=[1,2]"))

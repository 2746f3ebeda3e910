"""Long-tailed versions of a data set: the rows that are left, their scores by group, the loss that knows the counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.data.conftest import data_of, nodes, real
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_task
from transfer_run.data.long_tail import check_long_tail, group_of, kept_counts, long_tailed, with_counts
from transfer_run.data.loss import check_loss
from transfer_run.data.scores.labels import Scores
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.identity import identity
from transfer_run.methods.base import Method
from transfer_run.methods.entropy import cross_entropy
from transfer_run.task import Task

DIGITS = ("dataset=digits", "backbone=vit_tiny", "dataset.classes=[0,1,2,3,4,5,6,7,8,9]")


def tail(factor: Any = 20, **more: Any) -> list[str]:
    return [f"dataset.long_tail.{key}={value}" for key, value in {"factor": factor, **more}.items()]


def test_counts_fall_from_class_to_class() -> None:
    """Those of CIFAR-10-LT and CIFAR-100-LT at factor 100, as published (Cao et al. 2019), and the specification's."""
    ten = kept_counts([5000] * 10, 100, "exp")
    assert ten == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(kept_counts([500] * 100, 100, "exp")) == 10847
    assert kept_counts([100] * 4, 1 / 0.6**3, "exp") == [100, 60, 36, 21]
    assert kept_counts([500] * 10, 10, "step") == [500] * 5 + [50] * 5
    assert kept_counts([500] * 5, 10, "step") == [500] * 3 + [50] * 2


def test_few_rows_are_left_in_training_alone() -> None:
    whole, part = data_of(*DIGITS), data_of(*DIGITS, *tail())
    expected = kept_counts(whole.class_counts.tolist(), 20, "exp")
    assert part.class_counts.tolist() == expected
    assert part.sizes == {**whole.sizes, "train": sum(expected)}
    kept = part.subset["train"]
    assert (np.diff(kept) > 0).all()
    assert np.array_equal(part.labels("train"), whole.labels("train")[kept])
    assert torch.equal(part.split("train")[3]["pixel_values"], whole.split("train")[int(kept[3])]["pixel_values"])
    assert len(list(part.loader("train", batch_size=1))) == sum(expected)
    assert "a long tail: 0 " in part.notes[-1]


def test_the_rows_are_the_same_for_every_seed_and_nested() -> None:
    one, other = (data_of(*DIGITS, *tail(), seed=seed).subset["train"] for seed in (0, 5))
    assert np.array_equal(one, other)
    assert set(one) < set(data_of(*DIGITS, *tail(5)).subset["train"])


def test_a_part_is_counted_in_what_the_tail_leaves(tmp_path: Path) -> None:
    whole = data_of(*DIGITS, *tail())
    (tmp_path / "rows.json").write_text(json.dumps({"rows": {"train": [5, 1]}, "sizes": whole.sizes}))
    part = data_of(*DIGITS, *tail(), f"dataset.rows={tmp_path / 'rows.json'}")
    assert part.subset["train"].tolist() == whole.subset["train"][[5, 1]].tolist()
    assert part.sizes["train"] == 2
    with pytest.raises(UserError, match="those of another data set"):
        data_of(*DIGITS, f"dataset.rows={tmp_path / 'rows.json'}")


@pytest.mark.parametrize("answers", ["head", "names"])
def test_texts_have_a_tail_however_a_model_answers(answers: str) -> None:
    words = ("dataset=python_docs", "backbone=t5_tiny", f"dataset.answers={answers}")
    whole, part = data_of(*words), data_of(*words, *tail(8, many=60, few=10))
    assert part.class_counts.tolist() == kept_counts(whole.class_counts.tolist(), 8, "exp")
    assert "accuracy_many" in part.task.metrics
    assert set(part.metrics("test").kinds) == set(part.task.metrics)


def test_pictures_of_ones_own_have_a_tail() -> None:
    words = ("dataset=image_folder", "backbone=resnet18", f"dataset.path={real('images/cifar10-jpeg')}")
    data = data_of(*words, *tail(50, many=150))
    assert data.class_counts.tolist() == kept_counts([450] * 10, 50, "exp")
    assert {"accuracy_many", "accuracy_medium", "accuracy_few"} < set(data.task.metrics)


def test_rows_without_a_label_are_left_out() -> None:
    labels = np.array([0, -100, 0, 1, 1, 0, 0])
    assert set(long_tailed(labels, ("a", "b"), 2, "exp")) < {0, 2, 3, 4, 5, 6}
    with pytest.raises(UserError, match="class 'b' none would be left"):
        long_tailed(labels, ("a", "b"), 3, "step")


# ---- the scores of groups
@pytest.mark.parametrize(("rows", "group"), [(101, "many"), (100, "medium"), (20, "medium"), (19, "few"), (0, "few")])
def test_groups_are_those_of_the_benchmarks(rows: int, group: str) -> None:
    assert group_of(rows, 100, 20) == group


def scored(task: Task, predictions: list[int], labels: list[int]) -> dict[str, float]:
    scores = Scores(task)
    scores.update(torch.tensor(predictions), {"labels": torch.tensor(labels)})
    return scores.compute()


def task_of(groups: tuple[str, ...], *metrics: str) -> Task:
    return Task("classification", len(groups), tuple("abcd"[: len(groups)]), metrics, class_groups=groups)


def test_a_group_is_scored_over_the_rows_of_its_classes() -> None:
    task = task_of(("many", "many", "few"), "accuracy", "accuracy_many", "accuracy_medium", "accuracy_few")
    found = scored(task, [0, 0, 1, 2, 2, 1, 2], [0, 1, 1, 0, 2, 2, 2])
    assert found == {"accuracy": 4 / 7, "accuracy_many": 2 / 4, "accuracy_few": 2 / 3}  # nothing is medium


def test_groups_that_there_are_join_the_scores() -> None:
    data = data_of(*DIGITS, *tail(many=60, few=10))
    groups = [group_of(n, 60, 10) for n in data.class_counts]
    assert data.task.class_groups == tuple(groups)
    assert data.task.metrics == ("accuracy", "mean_class_accuracy", "accuracy_many", "accuracy_medium", "accuracy_few")
    assert "accuracy_few" not in data_of(*DIGITS, *tail(2, many=60, few=10)).task.metrics
    assert data_of(*DIGITS).task.class_groups == ()


def test_a_set_with_a_tail_of_its_own_is_scored_by_group_when_asked() -> None:
    words = [*DIGITS, "dataset.metrics=[accuracy,accuracy_many]", "dataset.long_tail.many=50"]
    data = data_of(*words)
    assert data.task.class_groups == ("many",) * 10
    assert data.task.metrics == ("accuracy", "accuracy_many")
    with pytest.raises(UserError, match="No class is one of few training rows"):
        _ = data_of(*DIGITS, "dataset.metrics=[accuracy_few]").task


def test_further_test_sets_have_no_groups() -> None:
    words = ["method=linear_probe", "backbone=vit_tiny", "dataset=digits", "dataset.metrics=[accuracy,accuracy_few]"]
    run = compose([*words, "dataset.long_tail.few=90", "dataset.tests.again=digits"])
    assert run.config["dataset"]["tests"]["again"]["metrics"] == ["accuracy"]


# ---- balanced softmax
def test_balanced_softmax_is_plain_where_classes_have_equal_counts() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -100, 0])
    task = Task("classification", 3, class_counts=(7, 7, 7), balanced_softmax=True)
    found = cross_entropy(logits, labels, task, training=True)
    assert torch.allclose(found, F.cross_entropy(logits, labels), atol=1e-6)


def test_balanced_softmax_adds_the_counts_in_training_alone() -> None:
    data = data_of(*DIGITS, *tail(), "dataset.balanced_softmax=true")
    method = Method(build_backbone(data.backbone, weights=False), data.task)
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    weighed = logits.exp() * torch.from_numpy(data.class_counts)
    expected = -(weighed / weighed.sum(1, keepdim=True)).log()[torch.arange(6), labels].mean()
    assert torch.allclose(method.train().task_loss(logits, labels), expected, atol=1e-6)
    assert torch.equal(method.eval().task_loss(logits, labels), F.cross_entropy(logits, labels))


def test_a_plan_knows_no_counts() -> None:
    task = build_task(*nodes(*DIGITS, "dataset.balanced_softmax=true", *tail()))
    assert task.balanced_softmax
    assert task.class_counts == (1,) * 10


def test_balanced_softmax_needs_rows_of_every_class() -> None:
    task = Task("classification", 2, ("a", "b"))
    with pytest.raises(UserError, match="Class 'b' has no training rows"):
        with_counts(task, {"balanced_softmax": True}, lambda: [3, 0])


# ---- what is refused, and what is in the identity
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"form": "regression"}, "asks for regression, and has no classes"),
        ({"form": "classification", "tasks": ["a"]}, "one task after another"),
        ({"form": "classification", "long_tail": {"factor": None, "many": 10, "few": 20}}, "A class of 11 rows"),
    ],
)
def test_what_has_no_tail_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_long_tail({"name": "d", "long_tail": {"factor": 10.0, "many": 100, "few": 20}, **keys})


@pytest.mark.parametrize("form", ["text_to_text", "regression"])
def test_balanced_softmax_is_of_a_heads_classes(form: str) -> None:
    with pytest.raises(UserError, match="whose loss has no balanced_softmax") as error:
        check_loss({"name": "d", "balanced_softmax": True}, form)
    assert "dataset.balanced_softmax=false" in error.value.remedy


@pytest.mark.parametrize(
    "words", [["dataset.long_tail.factor=1"], ["dataset.long_tail.kind=pareto"], ["dataset.long_tail=5"]]
)
def test_words_are_checked_before_the_run(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"dataset\.long_tail"):
        compose(["method=full", "backbone=vit_tiny", "dataset=digits", *words])


def test_it_is_in_the_identity_where_it_is_set() -> None:
    words = ["method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random"]
    plain = compose(words)
    dataset = {k: v for k, v in plain.config["dataset"].items() if k not in ("long_tail", "balanced_softmax")}
    assert identity({**plain.config, "dataset": dataset}, {}, {}) == identity(plain.config, {}, {})
    others = [tail(), tail(kind="step"), tail(many=50), ["dataset.long_tail.few=5"], ["dataset.balanced_softmax=true"]]
    assert len({plain.identity, *(compose([*words, *other]).identity for other in others)}) == 6
    assert compose([*words, "dataset.long_tail={factor:20,kind:exp}"]).identity == compose([*words, *tail()]).identity

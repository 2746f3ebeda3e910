"""The parts of breast_effnet: the loss, what a stage hands on, what rare classes gain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tests import small
from transfer_run.data.loss import balanced
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.build import build_method
from transfer_run.methods.representation.breast_effnet import BreastEffNet

Batch = dict[str, torch.Tensor]
TINY = ("hardware=cpu", "trainer.progress=none", "profiler=none")


def made(weights: tuple[float, ...] = (), **more: Any) -> BreastEffNet:
    torch.manual_seed(0)
    node = registry.entry("method", "breast_effnet", ()).content["method"] | more
    task = small.task("vit", "classification")
    built = build_method(node, small.backbone("vit"), task.__class__(**{**vars(task), "class_weights": weights}))
    assert isinstance(built, BreastEffNet)
    return built.train()


@pytest.fixture
def batch() -> Batch:
    return small.batch("vit", "classification")


def test_weights_are_inverse_to_the_counts() -> None:
    """Check 1."""
    assert balanced([1, 3]) == [2, pytest.approx(2 / 3)]
    assert sum(n * w for n, w in zip([5, 7, 2], balanced([5, 7, 2]), strict=True)) == pytest.approx(14)


@pytest.mark.parametrize("reduction", ["weights", "rows"])
def test_weights_of_one_are_the_plain_loss(reduction: str) -> None:
    """Check 2, its first half."""
    method = made(reduction=reduction)
    classes = method.task.num_labels
    logits, labels = torch.randn(6, classes), torch.arange(6) % classes
    method = made((1.0,) * classes, reduction=reduction)
    torch.testing.assert_close(method.task_loss(logits, labels), F.cross_entropy(logits, labels))


def test_the_two_reductions() -> None:
    """Check 2: of one class alone PyTorch's is the plain loss; over the rows it is w times that. The mean by hand."""
    classes = made().task.num_labels
    weights = tuple(float(n + 1) for n in range(classes))
    logits, one = torch.randn(5, classes), torch.ones(5, dtype=torch.long)
    plain = F.cross_entropy(logits, one)
    torch.testing.assert_close(made(weights).task_loss(logits, one), plain)
    torch.testing.assert_close(made(weights, reduction="rows").task_loss(logits, one), 2 * plain)
    labels = torch.arange(5) % classes
    by_hand = sum(weights[y] * F.cross_entropy(row[None], y[None]) for row, y in zip(logits, labels, strict=True)) / 5
    torch.testing.assert_close(made(weights, reduction="rows").task_loss(logits, labels), by_hand)
    hidden = torch.cat([labels, torch.tensor([-100])])
    more = torch.cat([logits, torch.randn(1, classes)])
    torch.testing.assert_close(made(weights, reduction="rows").task_loss(more, hidden), by_hand)


def test_evaluation_is_plain_and_the_same_twice(batch: Batch) -> None:
    """Check 7, and what the weights leave alone."""
    method = made((3.0,) * made().task.num_labels, dropout=0.5)
    assert not torch.equal(method(batch), method(batch)), "dropout is at work in training"
    method.eval()
    with torch.no_grad():
        assert torch.equal(method(batch), method(batch))
        expected = F.cross_entropy(method(batch), batch["labels"])
        torch.testing.assert_close(method.loss(batch), expected)


def test_a_stage_hands_its_trunk_on_and_no_head(tmp_path: Path) -> None:
    """Check 3, by a second stage whose steps move nothing: weights as they were, a head of its own."""
    words = ["experiment=breast_effnet_digits", *TINY, "trainer.max_steps=1", f"output_dir={tmp_path}"]
    stages = "stages=[[dataset.classes=[[0,1,2,3,4],[5,6,7,8,9]],dataset.metrics=[accuracy]],[optimizer.lr=1e-30]]"
    last = carry_out(compose([*words, stages]))
    runs = {path.parent.name: path.parent for path in tmp_path.rglob("result.json")}
    (first,) = (folder for name, folder in runs.items() if name != last.name)
    before, after = (load_file(folder / "checkpoints/model/model.safetensors") for folder in (first, last))
    assert after["backbone.head.weight"].shape[0] == 10
    assert before["backbone.head.weight"].shape[0] == 2
    trunk = [name for name in before if name.startswith("backbone.model.") and before[name].is_floating_point()]
    settled = {name: torch.where(after[name].abs() < 1e-20, 0, after[name]) for name in trunk}  # biases of 0 have moved
    moved = [name for name in trunk if not torch.equal(before[name], settled[name])]
    assert [name for name in moved if "running_" not in name] == []
    assert len(trunk) > 20


def test_rare_classes_are_found_more_often_with_weights(tmp_path: Path) -> None:
    """Check 6: two digits, one a tenth as often as the other, the same seed with and without."""
    words = ["method=breast_effnet", "backbone=cnn_tiny", "backbone.weights=random", "dataset=digits", *TINY,
             "dataset.classes=[3,8]", "dataset.long_tail.factor=10", "dataset.oversample.to=null",
             "dataset.metrics=[accuracy,by_class]", "trainer.max_epochs=12", "optimizer.lr=1e-3",
             f"output_dir={tmp_path}"]  # fmt: skip
    recalls = {}
    for weights in ("balanced", "null"):
        folder = carry_out(compose([*words, f"dataset.class_weights={weights}"]))
        recalls[weights] = json.loads((folder / "result.json").read_text())["metrics"]["test/recall/8"]
        assert (folder / "confusion.png").is_file()
    assert recalls["balanced"] > recalls["null"]

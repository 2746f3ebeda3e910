"""ZSCL's losses, average, constraint, schedule and metrics against numbers of the released code's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.methods.averaging import include
from transfer_run.methods.continual.sequence.accuracy import AccuracyMatrix
from transfer_run.methods.continual.sequence.losses import image_loss, text_loss, weight_constraint
from transfer_run.methods.continual.sequence.schedule import sequence_factor, task_factor
from transfer_run.methods.forms.retrieval import similarities

ORACLE = "zscl_*.npz"
ATOL = 1e-9


def close(ours: Tensor, theirs: Tensor) -> None:
    assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=ATOL), (ours, theirs)


def test_task_loss(tensors: dict[str, Tensor]) -> None:
    images, classes = (F.normalize(tensors[name], dim=-1) for name in ("task_image", "class_text"))
    logits = similarities(images, classes, tensors["logit_scale"])
    smoothing = float(tensors["label_smoothing"])
    close(F.cross_entropy(logits, tensors["task_label"], label_smoothing=smoothing), tensors["loss_ce"])


def test_distillation_and_its_gradient(tensors: dict[str, Tensor]) -> None:
    current = tensors["ref_image_current"].clone().requires_grad_()
    now, before, sentences = (
        F.normalize(features, dim=-1)
        for features in (current, tensors["ref_image_initial"], tensors["ref_text_initial"])
    )
    scale, temperature = tensors["logit_scale"], float(tensors["temperature"])
    a, b = similarities(now, sentences, scale), similarities(before, sentences, scale)
    of_images, of_texts = image_loss(b, a, temperature), text_loss(b, a, temperature)
    close(of_images.detach(), tensors["loss_image"])
    close(of_texts.detach(), tensors["loss_text"])
    (of_images + of_texts).backward()
    close(current.grad, tensors["grad_ref_image_current"])  # type: ignore[arg-type]


def model(weight: Tensor, bias: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear


def test_average_of_weights(tensors: dict[str, Tensor]) -> None:
    average = model(tensors["we_theta0_w"], tensors["we_theta0_b"])
    snapshots = zip(tensors["we_snapshots_w"], tensors["we_snapshots_b"], strict=True)
    for number, (weight, bias) in enumerate(snapshots, 1):
        include(average, model(weight, bias), number)
    close(average.weight.detach(), tensors["we_result_w"])  # type: ignore[union-attr, operator]
    close(average.bias.detach(), tensors["we_result_b"])  # type: ignore[union-attr, operator]


def test_weight_constraint(tensors: dict[str, Tensor]) -> None:
    last = (tensors["we_snapshots_w"][-1], tensors["we_snapshots_b"][-1])
    start = (tensors["we_theta0_w"], tensors["we_theta0_b"])
    close(weight_constraint(last, start), tensors["wc_loss_last_vs_theta0"])


def test_schedule_anew_for_every_task(tensors: dict[str, Tensor]) -> None:
    steps, base = int(tensors["sched_total"]) + 1, float(tensors["sched_base_lr"])
    factor = sequence_factor(task_factor("cosine", float(tensors["sched_warmup"]), steps), steps, [1.0, 5.0])
    for step, rate in zip(tensors["sched_steps"].tolist(), tensors["sched_lr"].tolist(), strict=True):
        assert base * factor(step) == pytest.approx(rate, abs=1e-16)
        assert base * factor(steps + step) == pytest.approx(5 * rate, abs=1e-16)


def test_metrics_of_the_matrix(tensors: dict[str, Tensor]) -> None:
    after = tensors["acc_matrix"].numpy()
    names = [f"task {number}" for number in range(len(after))]
    matrix = AccuracyMatrix(names, np.full(len(after), np.nan), after, np.ones(len(after), dtype=np.int64))
    assert np.allclose(matrix.transfer(), tensors["acc_transfer"].numpy(), atol=ATOL)
    assert np.allclose(matrix.average(), tensors["acc_avg"].numpy(), atol=ATOL)
    assert np.allclose(matrix.last(), tensors["acc_last"].numpy(), atol=ATOL)
    means = {name: float(tensors[f"acc_{key}"].mean()) for name, key in
             (("transfer", "transfer"), ("average", "avg"), ("last", "last"))}  # fmt: skip
    said = matrix.summary()
    assert {name: said[name] for name in means} == pytest.approx(means)

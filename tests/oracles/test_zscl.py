"""ZSCL's losses, average, constraint, schedule and metrics against numbers of the released code's formulas."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.methods.continual.sequence.accuracy import AccuracyMatrix
from transfer_run.methods.continual.sequence.averaging import include
from transfer_run.methods.continual.sequence.losses import image_loss, text_loss, weight_constraint
from transfer_run.methods.continual.sequence.schedule import sequence_factor, task_factor
from transfer_run.methods.forms.retrieval import similarities

FOLDER = Path(os.environ.get("TRANSFER_RUN_ORACLES", Path(__file__).parent / "data"))
FILES = sorted(FOLDER.glob("zscl_*.npz"))
ATOL = 1e-9

pytestmark = pytest.mark.skipif(not FILES, reason=f"no zscl_*.npz in {FOLDER}")


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def arrays(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    with np.load(request.param) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def close(ours: Tensor, theirs: Tensor) -> None:
    assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=ATOL), (ours, theirs)


def test_task_loss(arrays: dict[str, Tensor]) -> None:
    images, classes = (F.normalize(arrays[name], dim=-1) for name in ("task_image", "class_text"))
    logits = similarities(images, classes, arrays["logit_scale"])
    smoothing = float(arrays["label_smoothing"])
    close(F.cross_entropy(logits, arrays["task_label"], label_smoothing=smoothing), arrays["loss_ce"])


def test_distillation_and_its_gradient(arrays: dict[str, Tensor]) -> None:
    current = arrays["ref_image_current"].clone().requires_grad_()
    now, before, sentences = (
        F.normalize(features, dim=-1) for features in (current, arrays["ref_image_initial"], arrays["ref_text_initial"])
    )
    scale, temperature = arrays["logit_scale"], float(arrays["temperature"])
    a, b = similarities(now, sentences, scale), similarities(before, sentences, scale)
    of_images, of_texts = image_loss(b, a, temperature), text_loss(b, a, temperature)
    close(of_images.detach(), arrays["loss_image"])
    close(of_texts.detach(), arrays["loss_text"])
    (of_images + of_texts).backward()
    close(current.grad, arrays["grad_ref_image_current"])  # type: ignore[arg-type]


def model(weight: Tensor, bias: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear


def test_average_of_weights(arrays: dict[str, Tensor]) -> None:
    average = model(arrays["we_theta0_w"], arrays["we_theta0_b"])
    snapshots = zip(arrays["we_snapshots_w"], arrays["we_snapshots_b"], strict=True)
    for number, (weight, bias) in enumerate(snapshots, 1):
        include(average, model(weight, bias), number)
    close(average.weight.detach(), arrays["we_result_w"])  # type: ignore[union-attr, operator]
    close(average.bias.detach(), arrays["we_result_b"])  # type: ignore[union-attr, operator]


def test_weight_constraint(arrays: dict[str, Tensor]) -> None:
    last = (arrays["we_snapshots_w"][-1], arrays["we_snapshots_b"][-1])
    start = (arrays["we_theta0_w"], arrays["we_theta0_b"])
    close(weight_constraint(last, start), arrays["wc_loss_last_vs_theta0"])


def test_schedule_anew_for_every_task(arrays: dict[str, Tensor]) -> None:
    steps, base = int(arrays["sched_total"]) + 1, float(arrays["sched_base_lr"])
    factor = sequence_factor(task_factor("cosine", float(arrays["sched_warmup"]), steps), steps, [1.0, 5.0])
    for step, rate in zip(arrays["sched_steps"].tolist(), arrays["sched_lr"].tolist(), strict=True):
        assert base * factor(step) == pytest.approx(rate, abs=1e-16)
        assert base * factor(steps + step) == pytest.approx(5 * rate, abs=1e-16)


def test_metrics_of_the_matrix(arrays: dict[str, Tensor]) -> None:
    after = arrays["acc_matrix"].numpy()
    names = [f"task {number}" for number in range(len(after))]
    matrix = AccuracyMatrix(names, np.full(len(after), np.nan), after)
    assert np.allclose(matrix.transfer(), arrays["acc_transfer"].numpy(), atol=ATOL)
    assert np.allclose(matrix.average(), arrays["acc_avg"].numpy(), atol=ATOL)
    assert np.allclose(matrix.last(), arrays["acc_last"].numpy(), atol=ATOL)
    means = {name: float(arrays[f"acc_{key}"].mean()) for name, key in
             (("transfer", "transfer"), ("average", "avg"), ("last", "last"))}  # fmt: skip
    assert matrix.summary() == pytest.approx(means)

"""ZSCL: the checks of its spec, and its baselines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.methods.continual import models
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.continual.sequence import losses
from transfer_run.methods.continual.zscl import ZSCL
from transfer_run.task import Task

IMAGE = ("vision_model", "visual_projection")


def first_batch(data: object) -> dict[str, torch.Tensor]:
    return next(iter(data.loader("train", batch_size=8)))  # type: ignore[attr-defined]


def test_an_unmoved_model_loses_the_teachers_entropy_and_stays() -> None:
    before = torch.randn(6, 9, dtype=torch.float64)
    now = before.clone().requires_grad_()
    loss = losses.image_loss(before, now, 2.0)
    share = F.softmax(before / 2, dim=1)
    assert float(loss.detach()) == pytest.approx(4 * float(-(share * share.log()).sum(1).mean()))
    loss.backward()
    assert now.grad is not None
    assert float(now.grad.abs().max()) < 1e-12


def test_transposing_swaps_the_two_losses() -> None:
    a, b = torch.randn(6, 9), torch.randn(6, 9)
    assert torch.equal(losses.image_loss(a.T, b.T, 2.0), losses.text_loss(a, b, 2.0))
    assert torch.equal(losses.text_loss(a.T, b.T, 2.0), losses.image_loss(a, b, 2.0))
    assert losses.image_loss(a, b, 2.0) != losses.text_loss(a, b, 2.0)


def test_distillation_trains_the_image_encoder_alone() -> None:
    method, data = models.build()
    models.disturb(method)
    method.distillation(first_batch(data)).backward()
    for name, parameter in method.backbone.model.named_parameters():
        if name.startswith(IMAGE):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0 or name.endswith("k_proj.bias"), name  # softmax forgets such a bias
        else:
            assert parameter.grad is None, name


def test_the_task_loss_trains_both_encoders() -> None:
    method, data = models.build(*models.PLAIN)
    assert not method.held
    method.training_loss(first_batch(data)).backward()
    missing = {name for name, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert not missing
    assert method.backbone.model.logit_scale.grad is None


def test_the_loss_is_the_sum_of_its_parts() -> None:
    method, data = models.build("method.distill.weight=3", "method.wc.weight=0.5")
    models.disturb(method)
    batch = first_batch(data)
    with torch.no_grad():
        features = [method.backbone.encode({"pixel_values": batch["reference/pixel_values"]}, "image")]
        initial = method.get_submodule("initial")
        features.append(initial.encode({"pixel_values": batch["reference/pixel_values"]}, "image"))  # type: ignore[operator]
        sentences = initial.encode({"input_ids": batch["reference/input_ids"]}, "text")  # type: ignore[operator]
        now, before = (method.scale * f @ sentences.T / 2 for f in features)
        soft = F.kl_div(now.log_softmax(1), before.softmax(1), reduction="batchmean")
        soft = soft + F.kl_div(now.T.log_softmax(1), before.T.softmax(1), reduction="batchmean")
        for rows in (before, before.T):
            soft = soft - (rows.softmax(1) * rows.log_softmax(1)).sum(1).mean()
        anchor = dict(method.get_submodule("anchor").named_parameters())
        spring = sum(((p - anchor[n]) ** 2).sum() for n, p in method.backbone.named_parameters())
        task = F.cross_entropy(method(batch), batch["labels"], label_smoothing=0.2)
        assert float(method.loss(batch)) == pytest.approx(float(task + 3 * 4 * soft + 0.5 * spring), rel=1e-5)


def test_average_of_every_step_is_the_mean_of_start_and_iterates() -> None:
    method, data = models.build("method.we.every=1", "dataset.steps=4", "method.distill.weight=0")
    start = {name: p.detach().clone() for name, p in method.backbone.named_parameters()}
    method.optimizers({"lr": 1e-3, "schedule": "cosine", "warmup": 0}, 4)
    seen = [start, *models.train(method, data, 4)]
    for name, parameter in method.backbone.named_parameters():
        mean = torch.stack([weights[name].double() for weights in seen]).mean(0)
        assert torch.allclose(parameter.double(), mean, atol=1e-6), name
    anchor = dict(method.get_submodule("anchor").named_parameters())
    assert all(torch.equal(anchor[n], p) for n, p in method.backbone.named_parameters())


@pytest.mark.parametrize("towards", ["start", "initial"])
def test_wise_mixes_with_the_start_or_the_initial_model(towards: str) -> None:
    more = ("method.wise.alpha=0.8", f"method.wise.towards={towards}", "dataset.steps=2", *models.PLAIN)
    method, data = models.build(*more)
    start = {name: p.detach().clone() for name, p in method.backbone.named_parameters()}
    method.optimizers({"lr": 1e-3, "schedule": "constant", "warmup": 0}, 2)
    last = models.train(method, data, 2)[-1]
    for name, parameter in method.backbone.named_parameters():
        assert torch.allclose(parameter, 0.8 * last[name] + 0.2 * start[name], atol=1e-6), name


def test_the_scale_never_moves_and_a_strong_spring_holds_all() -> None:
    drift = []
    for weight in ("1.0e8", "0"):
        method, data = models.build(f"method.wc.weight={weight}", "method.we.enabled=false", "method.distill.weight=0")
        start = {name: p.detach().clone() for name, p in method.backbone.named_parameters()}
        last = models.train(method, data, 12)[-1]
        assert torch.equal(start["model.logit_scale"], last["model.logit_scale"])
        drift.append(max(float((last[name] - start[name]).abs().max()) for name in start))
    assert drift[0] < 2.1e-3  # the first step cannot know of the spring, and the way back is as wide
    assert drift[1] > 2 * drift[0]


def test_cached_sentences_give_the_losses_of_those_encoded_anew() -> None:
    found = []
    for mode in ("efficient", "official"):
        method, data = models.build(f"method.memory_mode={mode}")
        models.disturb(method)
        batches = data.loader("train", batch_size=8)
        found.append([float(method.loss(batch).detach()) for _, batch in zip(range(3), batches, strict=False)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_previous_teacher_is_the_model_at_the_tasks_start() -> None:
    more = ("method.distill.teacher=previous", "dataset.reference.images=task", "dataset.reference.texts=classes")
    method, data = models.build(*more, "dataset.steps=2", "method.we.enabled=false")
    assert set(method.held) == {"anchor"}
    method.optimizers({"lr": 1e-3, "schedule": "constant", "warmup": 0}, 2)
    last = models.train(method, data, 2)[-1]
    teacher = dict(method.teacher_model.named_parameters())
    assert all(torch.equal(teacher[name], last[name]) for name in last)
    assert method._sentences is None


@pytest.mark.parametrize("form", ["image_image", "feature_mse"])
def test_the_ablations_are_smallest_where_nothing_moved(form: str) -> None:
    off = ["method.distill.image=false", "method.distill.text=false", f"method.distill.{form}=true"]
    method, data = models.build(*off)
    batch = first_batch(data)
    still = float(method.distillation(batch).detach())
    models.disturb(method)
    assert float(method.distillation(batch).detach()) > still


def test_it_needs_a_sequence_and_both_towers() -> None:
    values = models.config()
    backbone = build_backbone(values["backbone"])
    with pytest.raises(UserError, match="sequence of tasks"):
        ZSCL(backbone, Task("classification", 3))  # type: ignore[arg-type]
    one = build_backbone({**values["backbone"], "tower": "image"})
    with pytest.raises(UserError, match="both towers"):
        ZSCL(one, Task("classification", 3, sequence=("a", "b")))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no task 'lo'") as error:
        ZSCL(backbone, Task("classification", 3, sequence=("low", "high")), lr_per_task={"lo": 1.0})  # type: ignore[arg-type]
    assert error.value.nearest == ["low"]


def test_a_task_has_its_own_rate_and_its_own_rise() -> None:
    method, _ = models.build("method.lr_per_task={middle: 5e-5}", "dataset.steps=10")
    rate = method.optimizers({"lr": 1e-5, "schedule": "cosine", "warmup": 2}, 10)["main"].factor
    assert rate is not None
    assert [rate(0), rate(1), rate(9)] == pytest.approx([0.5, 1.0, 0.0])
    assert [rate(10), rate(11), rate(20)] == pytest.approx([2.5, 5.0, 0.5])


def test_nothing_to_distil_on_is_the_users_error() -> None:
    method, data = models.build("dataset.reference.images=null", "dataset.reference.texts=null")
    with pytest.raises(UserError, match="nothing to distil"):
        method.loss(first_batch(data))


def test_only_classes_seen_so_far_compete_in_one_large_task() -> None:
    method, data = models.build("dataset.scenario=class")
    batch = next(iter(data.loader("test", batch_size=8)))
    assert method.counts is not None
    for finished, open_classes in ((0, 3), (1, 3), (2, 6), (3, 8)):
        method.counts.finished.fill_(finished)
        with torch.no_grad():
            assert int(method(batch).isfinite().sum(1)[0]) == open_classes


def test_a_task_shorter_than_the_warm_up_is_told() -> None:
    method, _ = models.build()
    said: list[str] = []
    method._context = Context(0, Path(), lambda split, size: iter(()), log=said.append)
    method.optimizers({"lr": 1e-5, "schedule": "cosine", "warmup": 100}, 101)
    assert not said
    method.optimizers({"lr": 1e-5, "schedule": "cosine", "warmup": 100}, 100)
    assert "a task has 100 steps and the learning rate rises for 100" in said.pop()

"""The plan of a CPU run is what the tracker measures when Lightning trains it for real."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tests.memory import small
from transfer_run.hardware.optimization import build_optimizer, build_optimizers
from transfer_run.memory.account import KINDS, MemoryReport
from transfer_run.memory.callback import MemoryCallback
from transfer_run.memory.planner import Rehearsal, Setting
from transfer_run.methods.base import Method
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.methods.tuning.full import Full
from transfer_run.methods.tuning.linear_probe import LinearProbe
from transfer_run.methods.tuning.lora import LoRA

METHODS: dict[str, Callable[..., Method]] = {"full": Full, "linear_probe": LinearProbe, "lora": LoRA, "lst": LST}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"about": {"target": "torch.optim.AdamW"}, "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8},
    "adamw_fused": {"about": {"target": "torch.optim.AdamW"}, "lr": 1e-3, "fused": True},
    "sgd": {"about": {"target": "torch.optim.SGD"}, "lr": 1e-3, "momentum": 0.9},
    "adafactor": {"about": {"target": "torch.optim.Adafactor"}, "lr": 1e-3},
}
PHASES = ("forward", "backward", "step", "evaluation")
SIZE = 16


class Fitted(pl.LightningModule):
    """The runner's training step without data loaders and metrics."""

    def __init__(self, method: Method, optimizer: Mapping[str, Any]) -> None:
        super().__init__()
        self.method, self.settings = method.train(), optimizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.method.training_loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.method.predict(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.optimizers(use_pl_optimizer=False).zero_grad()

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.method.parameter_groups(), self.settings)


def fit(method: Method, batches: list[dict[str, Tensor]], callback: pl.Callback, *, optimizer: str = "adamw",
        precision: Any = "32-true", accumulate: int = 1) -> None:  # fmt: skip
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, precision=precision, gradient_clip_val=1.0, callbacks=[callback],
            accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        loaders = DataLoader(batches, batch_size=None), DataLoader([dict(batches[0])], batch_size=None)
        trainer.fit(Fitted(method, OPTIMIZERS[optimizer]), *loaders)


def measured(kind: str, method: str, *, checkpointing: bool = False, accumulate: int = 1, **how: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    backbone = small.backbone(kind)
    backbone.activation_checkpointing = checkpointing
    callback = MemoryCallback(2)
    batches = [small.batch(kind, SIZE) for _ in range(3 * accumulate)]
    fit(METHODS[method](backbone, small.task(kind)), batches, callback, accumulate=accumulate, **how)
    return callback.result()


def planned(kind: str, method: str, setting: Setting, *, checkpointing: bool = False, optimizer: str = "adamw",
            size: int = SIZE) -> MemoryReport:  # fmt: skip
    backbone = small.backbone(kind, "meta")
    backbone.activation_checkpointing = checkpointing
    with torch.device("meta"):
        built = METHODS[method](backbone, small.task(kind))

    def make_optimizers() -> Mapping[str, Optimizer]:
        return build_optimizers(built.optimizers({}, 1), OPTIMIZERS[optimizer])

    return Rehearsal(built, make_optimizers, lambda n: small.shapes(kind, n), setting).measure(size)


def assert_agree(plan: MemoryReport, measurement: dict[str, Any]) -> None:
    """Peak within 2 %, and every phase's; activations, the kind that is hardest to predict, within 2 % of the peak."""
    assert plan.peak == pytest.approx(measurement["peak"], rel=0.02)
    for phase in PHASES:
        assert plan.phases[phase].bytes == pytest.approx(measurement["phases"][phase]["peak"], rel=0.02), phase
    for kind in KINDS:
        assert abs(plan.by_kind[kind] - measurement["by_kind"][kind]) <= 0.02 * plan.peak, kind
    assert sum(plan.by_kind.values()) == plan.peak


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["t5", "vit"])
def test_plan_is_what_the_tracker_measures(kind: str, method: str) -> None:
    assert_agree(planned(kind, method, Setting(target="cpu")), measured(kind, method))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_plan_is_what_the_tracker_measures_in_other_families(kind: str) -> None:
    assert_agree(planned(kind, "lst", Setting(target="cpu")), measured(kind, "lst"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_plan_knows_the_precision(precision: str) -> None:
    plan = planned("t5", "lora", Setting(target="cpu", precision=precision))
    assert_agree(plan, measured("t5", "lora", precision=precision))
    assert plan.peak < planned("t5", "lora", Setting(target="cpu")).peak


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor"])
def test_plan_knows_the_optimizer(optimizer: str) -> None:
    plan = planned("vit", "full", Setting(target="cpu"), optimizer=optimizer)
    assert_agree(plan, measured("vit", "full", optimizer=optimizer))
    assert plan.by_kind["optimizer"] < planned("vit", "full", Setting(target="cpu")).by_kind["optimizer"]


def test_one_kernel_makes_no_temporaries() -> None:
    """torch.optim.AdamW updates all parameters at once by copies as large as they are; fused it does not."""
    plan = planned("vit", "full", Setting(target="cpu"), optimizer="adamw_fused")
    assert_agree(plan, measured("vit", "full", optimizer="adamw_fused"))
    at_once, fused = (planned("vit", "full", Setting(), optimizer=name).phases["step"] for name in
                      ("adamw", "adamw_fused"))  # fmt: skip
    weights = fused.by_kind["gradients"]
    assert at_once.by_kind["other"] - fused.by_kind["other"] > 0.9 * weights
    assert fused.by_kind["optimizer"] >= 2 * weights


def test_plan_knows_activation_checkpointing() -> None:
    plan = planned("vit", "full", Setting(target="cpu"), checkpointing=True)
    assert_agree(plan, measured("vit", "full", checkpointing=True))
    assert plan.by_kind["activations"] < 0.6 * planned("vit", "full", Setting(target="cpu")).by_kind["activations"]


def test_plan_knows_accumulation() -> None:
    plan = planned("vit", "full", Setting(target="cpu", accumulate=3))
    assert_agree(plan, measured("vit", "full", accumulate=3))
    assert plan.phases["forward"].by_kind["gradients"] > 0  # those of the batches before


def test_one_rehearsal_answers_for_many_batches() -> None:
    with torch.device("meta"):
        method = Full(small.backbone("vit", "meta"), small.task("vit"))
    rehearsal = Rehearsal(
        method, lambda: build_optimizers(method.optimizers({}, 1), OPTIMIZERS["adamw"]),
        lambda n: small.shapes("vit", n), Setting(target="cpu"),
    )  # fmt: skip
    again = {size: rehearsal.measure(size).peak for size in (8, 32, 16, 8)}
    assert again[16] == planned("vit", "full", Setting(target="cpu"), size=16).peak
    assert again[8] == planned("vit", "full", Setting(target="cpu"), size=8).peak
    assert again[32] - again[16] == pytest.approx(2 * (again[16] - again[8]), rel=0.02)


def test_nothing_is_stepped_when_only_the_evaluation_is_asked_for() -> None:
    with torch.device("meta"):
        method = Full(small.backbone("vit", "meta"), small.task("vit"))

    def no_optimizer() -> Mapping[str, Optimizer]:
        raise AssertionError("no optimizer is needed to predict")

    report = Rehearsal(method, no_optimizer, lambda n: small.shapes("vit", n), Setting(), trains=False).measure(1)
    assert report.phase == "evaluation"
    assert report.by_kind["gradients"] == report.by_kind["optimizer"] == 0


def test_the_papers_setting_needs_more_than_todays() -> None:
    todays = planned("t5", "full", Setting())
    papers = planned("t5", "full", Setting().as_paper())
    assert papers.phases["forward"].by_kind["activations"] > todays.phases["forward"].by_kind["activations"]
    assert papers.phases["forward"].by_kind["gradients"] > todays.phases["forward"].by_kind["gradients"] == 0
    assert papers.phases["step"].by_kind["other"] < todays.phases["step"].by_kind["other"]  # one tensor at a time


def test_a_gpu_updates_all_parameters_at_once_and_counts_no_step_counters() -> None:
    setting = Setting(gradient_clip=None)
    gpu, cpu = planned("vit", "full", setting), planned("vit", "full", replace(setting, target="cpu"))
    trained = gpu.phases["step"].by_kind["gradients"]
    at_once = gpu.phases["step"].by_kind["other"] - gpu.phases["backward"].by_kind["other"]  # without the workspaces
    assert at_once >= trained
    assert gpu.phases["step"].by_kind["optimizer"] == 2 * trained
    assert cpu.phases["step"].by_kind["other"] < trained

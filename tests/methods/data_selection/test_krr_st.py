"""Checks 5 and 7 of the method's spec, and whole runs: files, memory, stopped and gone on with, weights for others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.matrix.smallest import stopped_in_work
from transfer_run.backbones.base import Batch
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method
from transfer_run.methods.data_selection.krr_st import OUTER, POOL, KrrSt
from transfer_run.methods.work import Work
from transfer_run.task import Task

CONFIGS = Path(__file__).parents[3] / "configs"
TASK = Task("classification", 10, tuple("0123456789"))


def node(group: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(content.get(group, content))


def backbone(name: str = "convnet_st_tiny", **image: Any) -> Any:
    config = node("backbone", name) | {"weights": "random:0"}
    return build_backbone(config | {"image": config["image"] | image})


def method(teacher: Any = None, **words: Any) -> KrrSt:
    made = KrrSt(backbone(), TASK, **words)
    made.take_sources(lambda name: Method(backbone("mlp_tiny") if teacher is None else teacher, TASK))
    return made


def test_one_outer_step_moves_the_pairs_alone() -> None:
    made = method(num_images=6, pool=POOL | {"size": 2, "max_steps": 3}, outer=OUTER | {"steps": 1, "lr": 0.1})
    real = torch.randn(8, 1, 8, 8)
    images, targets = made.first_pairs(real[:6])
    pool = made._warm_pool(images, targets, 0, Work())
    student = pool.student(0)
    before = {name: each.clone() for model in (student, made.source) for name, each in model.state_dict().items()}
    images, targets = images.requires_grad_(), targets.requires_grad_()
    made.outer_loss(student, images, targets, real).backward()
    after = {name: each for model in (student, made.source) for name, each in model.state_dict().items()}
    assert all(torch.equal(each, before[name]) for name, each in after.items())
    assert all(p.grad is None for model in (student, made.source) for p in model.parameters())
    assert float(images.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert float(targets.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_students_see_the_pixels_as_they_are_and_the_teacher_normalised_ones() -> None:
    made = method(num_images=6)
    real = torch.randn(6, 1, 8, 8)
    images, targets = made.first_pairs(real)
    torch.testing.assert_close(images, real * 0.376 + 0.305)
    assert torch.equal(targets, made.source.features({"pixel_values": real}))
    normalised = method(num_images=6, init_normalised=True).first_pairs(real)[0]
    assert torch.equal(normalised, real)


def test_the_outer_loss_reads_running_statistics() -> None:
    """In eval mode no image changes what another one's features are."""
    made = method(num_images=6, pool=POOL | {"size": 1, "max_steps": 3})
    images, targets = made.first_pairs(torch.randn(6, 1, 8, 8))
    student = made._warm_pool(images, targets, 0, Work()).student(0)
    assert student.training
    made.outer_loss(student, images, targets, torch.randn(4, 1, 8, 8))
    assert not student.training


@pytest.mark.slow
def test_the_outer_error_falls_on_digits() -> None:
    """Check 7: a random frozen teacher, 300 outer steps; the last 20 are below 0.6 of the first 20."""
    made = method(num_images=20, pool=POOL | {"size": 4, "max_steps": 100}, outer=OUTER | {"steps": 300, "lr": 3e-3})
    data = build_data(
        node("dataset", "digits") | {"classes": list(range(10)), "rows": None}, node("backbone", "convnet_st_tiny"), 0
    )

    def batches(first: int) -> Iterator[Batch]:
        while True:
            yield from data.loader("train", batch_size=128, seed=0)

    split = data.split("train")
    images, targets = made.first_pairs(torch.stack([split[n]["pixel_values"] for n in range(20)]))
    pool = made._warm_pool(images, targets, 0, Work())
    losses = made._distil(pool, images, targets, batches, Work())[2]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])


def test_a_teacher_of_other_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="the mean of their images differ"):
        method(backbone("mlp_tiny", mean=[0.5]))


# ---- whole runs
WORDS = (
    "method=krr_st", "backbone=convnet_st_tiny", "dataset=digits", "dataset.classes=[0,1,2]", "dataset.batch_size=32",
    "sources.teacher=method=pretrain backbone=mlp_tiny dataset=digits dataset.classes=[0,1,2] trainer.max_steps=3",
    "method.num_images=12", "method.pool={size:2,max_steps:4}", "method.outer={steps:5,lr:1e-2}",
    "method.pretrain={epochs:3,batch_size:8}", "trainer.progress=none", "hardware=cpu", "trainer.log_every=1",
)  # fmt: skip


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(compose([*WORDS, f"output_dir={tmp_path_factory.mktemp('whole')}"]))


def test_a_run_leaves_pairs_pictures_and_weights(whole: Path) -> None:
    made, targets = load_file(whole / "synthetic.safetensors"), load_file(whole / "targets.safetensors")["targets"]
    assert list(made["images"].shape) == [12, 1, 8, 8]
    assert list(targets.shape) == [12, 48]
    assert len(list((whole / "images").rglob("*.png"))) == 12
    assert (whole / "synthetic.png").read_bytes().startswith(b"\x89PNG")
    assert {"outer/first", "outer/last", "pretrain/last"} <= result(whole)["metrics"].keys()
    assert not (whole / "checkpoints" / "prepare").exists()


def test_its_memory_is_planned(whole: Path) -> None:
    memory = result(whole)["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


def test_a_later_run_begins_from_its_weights(whole: Path) -> None:
    words = [
        "method=linear_probe", "backbone=convnet_st_tiny", "dataset=digits", "trainer.max_steps=2", "hardware=cpu",
        "trainer.progress=none", f"output_dir={whole.parents[2]}", f"backbone.weights=run:{shlex.join(WORDS)}",
    ]  # fmt: skip
    assert "test/accuracy" in result(carry_out(compose(words)))["metrics"]


@pytest.mark.parametrize("seen", [1, 8, 14])
def test_a_stopped_run_goes_on_to_the_same_pairs(whole: Path, tmp_path: Path, seen: int) -> None:
    """In the pool's first steps, in the middle of distilling, while the fresh network learns."""
    run = compose([*WORDS, f"output_dir={tmp_path}", "profiler=none"])
    stopped_in_work(run, seen)
    carry_out(run)
    for name in ("synthetic.safetensors", "targets.safetensors", "losses.csv", "weights/model.safetensors"):
        assert (run.folder / name).read_bytes() == (whole / name).read_bytes(), name

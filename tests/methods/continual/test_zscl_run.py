"""Whole runs of ZSCL: the matrix in the result, going on after an interruption, what is kept and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.matrix.smallest import carried_out_in_two
from tests.methods.continual import models
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.tables import spec

QUICK = ("dataset.steps=3", "method.we.every=2", "optimizer.lr=1e-3", "optimizer.warmup=1", "trainer.progress=none",
         "trainer.log_every=1", "profiler=none")  # fmt: skip


def run(output: Path, *more: str) -> Path:
    return carry_out(compose(models.words(*QUICK, f"output_dir={output}", *more)))


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"))


def test_the_matrix_is_in_the_result(whole: Path) -> None:
    found = result(whole)
    continual, metrics = found["extra"]["continual"], found["metrics"]
    after = continual["after"]
    assert continual["tasks"] == ["low", "middle", "high"]
    assert [len(row) for row in after] == [3, 3, 3]
    assert len(continual["before"]) == 3
    assert metrics["transfer"] == pytest.approx((after[0][1] + (after[0][2] + after[1][2]) / 2) / 2, abs=1e-5)
    assert metrics["average"] == pytest.approx(sum(map(sum, after)) / 9, abs=1e-5)
    assert metrics["last"] == pytest.approx(sum(after[2]) / 3, abs=1e-5)
    assert metrics["test/accuracy"] == pytest.approx(metrics["last"], abs=1e-5)  # counted twice, by two ways
    assert metrics["test/accuracy/middle"] == pytest.approx(after[2][1], abs=1e-5)
    assert (whole / found["extra"]["picture"]).stat().st_size > 5000
    assert found["extra"]["table"][0].split() == ["low", "middle", "high"]


def test_the_whole_clip_is_shipped_and_no_copy(whole: Path) -> None:
    tensors = load_file(whole / "checkpoints" / "model" / "model.safetensors")
    assert all(name.startswith("backbone.model.") for name in tensors)
    assert result(whole)["parameters"]["total"] == sum(tensor.numel() for tensor in tensors.values())
    loaded = load_model(whole / "checkpoints" / "model")
    batch = next(iter(models.data_of(*QUICK).loader("test", batch_size=8)))
    with torch.no_grad():
        assert loaded(batch).shape == (8, 3)


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_sequence_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, step: int) -> None:
    """In the middle of the first task, and of the second one."""
    folder = carried_out_in_two(compose(models.words(*QUICK, f"output_dir={tmp_path}")), step)
    files = [place / "checkpoints" / "model" / "model.safetensors" for place in (whole, folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert result(folder)["extra"]["continual"] == result(whole)["extra"]["continual"]
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_a_source_can_be_the_teacher(whole: Path, tmp_path: Path) -> None:
    folder = run(
        tmp_path, "method.distill.teacher=source", f"+sources.teacher={whole}", 'dataset.tasks=["digits classes=[3,4]"]'
    )
    assert set(result(folder)["metrics"]) >= {"average", "last", "zero_shot"}


def test_more_steps_than_tasks_are_refused(tmp_path: Path) -> None:
    from transfer_run.errors import UserError

    with pytest.raises(UserError, match="10 steps are more than the 9 of 3 tasks"):
        run(tmp_path, "trainer.max_steps=10")


def test_the_plan_counts_the_copies_as_weights() -> None:
    plans = [plan_run(compose(models.words(*QUICK, *more))).memory["by_kind"] for more in ((), models.PLAIN)]
    one = sum(p.numel() for p in models.build()[0].backbone.parameters()) * 4
    assert plans[0]["parameters"] - plans[1]["parameters"] == pytest.approx(3 * one, rel=0.02)
    assert plans[0]["optimizer"] == pytest.approx(plans[1]["optimizer"], rel=0.02)
    assert plans[0]["gradients"] <= 1.02 * one


TABLES = [name for name in registry.names("table", ()) if name.startswith("zscl/")]


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_the_tables_has_a_valid_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("cifar100", "imagenet"):  # that a table's words name where they are given
        (tmp_path / folder / "class").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "class" / "1.png")
    monkeypatch.chdir(tmp_path)
    table = spec.read(name)
    rows = [row for row in table.rows if row.words is not None]
    for row, scale in zip(rows, ("paper", "smoke") * len(rows), strict=False):
        compose(table.cell_words(row, table.columns[0], scale))


@pytest.mark.long
def test_distillation_keeps_what_fine_tuning_forgets(tmp_path: Path) -> None:
    """A tiny CLIP that knows the numerals learns the digits in words: without ZSCL the numerals suffer."""
    last = {}
    for name, more in (("zscl", ()), ("finetune", models.PLAIN)):
        words = ["experiment=zscl_digits", f"output_dir={tmp_path}", "profiler=none", "trainer.progress=none", *more]
        by_task = result(carry_out(compose(words)))["extra"]["continual"]["by_task"]
        last[name] = by_task["transfer"]["numerals"], by_task["last"]["low"]
    assert last["zscl"][0] > last["finetune"][0] + 0.2
    assert last["zscl"][0] > 0.8
    assert last["zscl"][1] > 0.7

"""Methods that take their steps themselves: resumed bit for bit, planned, summed over batches, on two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.matrix.smallest import build, carried_out_in_two
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose, make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.planning.preflight import check_before
from transfer_run.experiment.run import carry_out
from transfer_run.hardware.optimization import build_optimizers, schedule_factor
from transfer_run.hardware.steps import Steps

TOYS = str(Path(__file__).parent / "toys")
WORDS = ("backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "hardware=cpu", "trainer.progress=none",
         "trainer.log_every=1", "optimizer.lr=1e-3")  # fmt: skip


def composed(tmp_path: Path, *words: str) -> Run:
    cfg = compose([*WORDS, f"output_dir={tmp_path}", *words], config_dir=TOYS)
    make_importable(cfg)
    return cfg


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "model" / "model.safetensors")


@pytest.mark.parametrize(("method", "in_turn"), [("reinforced", True), ("reinforced", False), ("bilevel", None)])
def test_a_step_is_planned_as_it_is_measured(tmp_path: Path, method: str, in_turn: bool | None) -> None:
    """Two optimizers with REINFORCE, in turn and at once; gradients of gradients."""
    own = [] if in_turn is None else [f"method.in_turn={str(in_turn).lower()}"]
    cfg = composed(tmp_path, f"method={method}", "trainer.max_steps=3", *own)
    memory = result(carry_out(cfg))["memory"]
    plan = plan_run(cfg, "cpu").memory
    assert memory["predicted_peak"] == plan["peak"] == pytest.approx(memory["peak"], rel=0.02)
    assert plan["peak_phase"] == memory["peak_phase"]
    for phase in ("forward", "backward", "step"):
        assert plan["phases"][phase]["peak"] == pytest.approx(memory["phases"][phase]["peak"], rel=0.02), phase
        for kind in ("gradients", "optimizer"):
            found = [side["phases"][phase]["by_kind"][kind] for side in (plan, memory)]
            assert found[0] == pytest.approx(found[1], rel=0.02, abs=0.01 * memory["peak"]), (phase, kind)


def test_a_stopped_run_goes_on_bit_for_bit_with_both_optimizers(tmp_path: Path) -> None:
    words = ("method=reinforced", "trainer.max_steps=5", "trainer.accumulate=2", "profiler=none", "optimizer.warmup=2")
    whole = carry_out(composed(tmp_path / "whole", *words))
    stopped = carried_out_in_two(composed(tmp_path / "stopped", *words), 3)
    assert (stopped / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    first, second = weights(whole), weights(stopped)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert result(whole)["time"]["steps"] == 5


def test_the_trainer_does_what_a_plain_loop_does(tmp_path: Path) -> None:
    """Sums over two batches, clips each optimizer's gradients, moves each schedule; an update counts once."""
    words = ("method=bilevel", "trainer.max_steps=3", "trainer.accumulate=2", "trainer.gradient_clip=0.1")
    cfg = composed(tmp_path, *words, "profiler=none")
    run = weights(carry_out(cfg))
    method, data = build(cfg)
    node: dict[str, Any] = dict(cfg.config["optimizer"])
    steps = Steps(build_optimizers(method.optimizers(node, 1), node), clip=0.1, accumulate=2)
    factor = schedule_factor(node["schedule"], node["warmup"], 3)
    method.train()
    for number, batch in zip(range(6), data.loader("train", batch_size=32), strict=False):
        steps.optimizers["main"].param_groups[0]["lr"] = node["lr"] * factor(steps.done)
        steps.carry_out(method, batch, last=number % 2 == 1)
    assert steps.done == 3
    for name, value in method.shipped().items():
        assert torch.allclose(run[name], value, atol=1e-7), name


@pytest.mark.parametrize("word", ["hardware.strategy=fsdp", "hardware.precision=16-mixed"])
def test_what_own_steps_cannot_do_is_refused_before_anything_runs(tmp_path: Path, word: str) -> None:
    cfg = composed(tmp_path, "method=bilevel", word)
    for refuses in (lambda: plan_run(cfg), lambda: check_before(cfg, sources_missing=False)):
        with pytest.raises(UserError, match="takes its steps itself") as error:
            refuses()
        assert error.value.where == word


def test_a_plan_of_shards_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sharded"):
        plan_run(composed(tmp_path, "method=bilevel", "plan.devices=2", "plan.strategy=fsdp"))


def test_steps_that_are_told_are_updates_not_batches(tmp_path: Path) -> None:
    words = ("dataset.batch_size=256", "trainer.accumulate=2", "trainer.max_epochs=1", "trainer.progress=lines")
    folder = carry_out(composed(tmp_path, "method=bilevel", "profiler=none", *words))
    assert f"training: {result(folder)['time']['steps']} steps, " in (folder / "run.log").read_text()


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_both_losses(tmp_path: Path) -> None:
    """Masks are drawn anew in every process, so the policy lets all columns pass."""
    words = ("method=reinforced", "method.in_turn=true", "method.bias=60", "trainer.max_steps=2", "profiler=none",
             "optimizer=sgd", "optimizer.lr=0.1", "trainer.gradient_clip=null")  # fmt: skip
    folders = [carry_out(composed(tmp_path / str(n), f"hardware.devices={n}", *words)) for n in (1, 2)]
    first, second = map(weights, folders)
    assert first.keys() == second.keys()
    for name in first.keys() - {"baseline"}:  # the loss of a process's own rows
        assert torch.allclose(first[name], second[name], atol=1e-4), name

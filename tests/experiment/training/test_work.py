"""Long work of `prepare`: stopped in its middle it goes on bit for bit, and it is watched, told of and planned."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.experiment.training.test_own_steps import composed, result, weights
from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.training import work as module
from transfer_run.experiment.training.work import ResumedWork

WORDS = ("method=prepared", "trainer.max_steps=2", "profiler=none")
SETTINGS = {"log_every": 2, "stop_on_nan": True, "checkpoint_minutes": 60, "progress": "lines"}


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Any) -> None:
    """Do something before step `wanted` of a loop."""
    ordinary, seen = module.seed_all, iter(range(10_000))

    def seed(value: int) -> None:
        if next(seen) == wanted:
            act()
        ordinary(value)

    monkeypatch.setattr(module, "seed_all", seed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(composed(tmp_path_factory.mktemp("whole"), *WORDS))


@pytest.mark.parametrize(
    ("number", "step", "raised"),
    [(signal.SIGTERM, 17, Preempted), (signal.SIGUSR1, 41, Preempted), (signal.SIGINT, 5, KeyboardInterrupt)],
)
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int, raised: type[BaseException]
) -> None:
    """In the middle of the first loop, and in the second, whose first is then not repeated."""
    run = composed(tmp_path, *WORDS)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(raised):
            carry_out(run)
    saved = torch.load(run.folder / "checkpoints" / "prepare" / ("coder.ckpt" if step < 40 else "scale.ckpt"))
    assert saved["step"] == step % 40 + 1
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "seed_all", lambda value, seed=module.seed_all: (calls.append(value), seed(value)))
        carry_out(run)
    assert len(calls) == 43 - step - 1
    first, second = weights(whole), weights(run.folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert result(whole)["metrics"] == result(run.folder)["metrics"]
    assert not (run.folder / "checkpoints" / "prepare").exists()


def test_a_kill_between_saves_repeats_what_was_not_saved(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = composed(tmp_path, *WORDS, "trainer.checkpoint_minutes=1e-9")
    broken = RuntimeError("killed")

    def die() -> None:
        raise broken

    with monkeypatch.context() as patch:
        at_step(patch, 30, die)
        with pytest.raises(RunFailed, match="killed"):
            carry_out(run)
    carry_out(run)
    first, second = weights(whole), weights(run.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_planned_as_it_is_measured(tmp_path: Path) -> None:
    run = composed(tmp_path, "method=prepared", "trainer.max_steps=2", "method.coder_steps=3", "dataset.batch_size=256")
    memory, plan = result(carry_out(run))["memory"], plan_run(run, "cpu").memory
    assert plan["phases"]["prepare"]["peak"] == pytest.approx(memory["phases"]["prepare"]["peak"], rel=0.02)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="The loss of coder is"):
        carry_out(composed(tmp_path, *WORDS, "method.rate=1e30", "trainer.log_every=1"))


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)

    def step(number: int) -> None:
        with torch.no_grad():
            layer.bias.fill_(float("inf"))

    with pytest.raises(RunFailed, match=r"layer\.bias"):
        ResumedWork(tmp_path, 0, SETTINGS).loop("x", step, 1, {"layer": layer})
    assert not list(tmp_path.rglob("*.ckpt"))


def test_steps_have_random_numbers_of_their_own_and_none_are_used_up(tmp_path: Path) -> None:
    work, drawn = ResumedWork(tmp_path, 0, SETTINGS), []
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for name in ("a", "b"):
        work.loop(name, lambda step: drawn.append(float(torch.rand(()))), 3, {})
    assert torch.equal(torch.rand(2), expected)
    assert len(set(drawn)) == 6


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "prepare" / "x.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="damaged") as error:
        ResumedWork(tmp_path, 0, SETTINGS).loop("x", lambda step: None, 1, {})
    assert error.value.where == str(path)


def test_progress_is_told_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0)
    said: list[str] = []
    monkeypatch.setattr(module.LOG, "info", lambda text, *values: said.append(text % values))
    work = ResumedWork(tmp_path, 0, SETTINGS)
    assert list(work.follow("rows", "ab", 2)) == ["a", "b"]
    work.loop("x", lambda step: torch.tensor(0.5), 1, {})
    assert said[0].startswith("rows: 1/2")
    assert said[2].startswith("x: 1/1  loss 0.5")


def test_seeding_a_step_leaves_nothing_behind() -> None:
    torch.manual_seed(7)
    expected, queued = torch.rand(3), len(torch.cuda._queued_calls)
    for _ in range(3):
        module.seed_all(7)
    assert torch.equal(torch.rand(3), expected)
    assert len(torch.cuda._queued_calls) == queued


def test_what_a_loop_left_is_let_go_of_when_asked(tmp_path: Path) -> None:
    work, weight = ResumedWork(tmp_path, 0, SETTINGS), torch.zeros(())
    work.loop("sum", lambda step: weight.add_(1), 3, {"weight": weight})
    assert (tmp_path / "checkpoints" / "prepare" / "sum.ckpt").is_file()
    work.forget("sum")
    work.forget("never carried out")
    assert not (tmp_path / "checkpoints" / "prepare" / "sum.ckpt").exists()

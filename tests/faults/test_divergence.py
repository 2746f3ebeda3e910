"""A run that diverges fails, and nobody trains on what is left of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from transfer_run.backbones.weights.checkpoints import not_finite
from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.run import carry_out
from transfer_run.files import read_json, write_json
from transfer_run.methods.tuning.linear_probe import LinearProbe

PROBE = ("method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu",
         "profiler=none", "trainer.progress=none")  # fmt: skip
DIVERGES = ("optimizer=sgd", "optimizer.lr=1e38", "trainer.gradient_clip=null", "optimizer.warmup=0")


def config(folder: Path, *words: str) -> Run:
    return compose([*PROBE, f"output_dir={folder}", *words])


@pytest.mark.parametrize("length", ["trainer.max_epochs=3", "trainer.max_steps=3"])
def test_a_run_that_diverges_fails(length: str, tmp_path: Path) -> None:
    """Seen at a logged step, at an epoch's end and at the end of a fit of a few steps."""
    cfg = config(tmp_path, *DIVERGES, length)
    with pytest.raises(RunFailed, match=r"training loss is (nan|inf) at step \d+.*lower optimizer.lr") as error:
        carry_out(cfg)
    folder = cfg.folder
    assert error.value.log == folder / "run.log"
    assert "training loss is" in error.value.log.read_text(encoding="utf-8")
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoints" / "last.ckpt").exists(), "the same command would go on from it"


def test_the_loss_alone_may_be_left_but_never_the_weights(tmp_path: Path) -> None:
    cfg = config(tmp_path, *DIVERGES, "trainer.max_steps=3", "trainer.stop_on_nan=false")
    assert cfg.identity == config(tmp_path, *DIVERGES, "trainer.max_steps=3").identity
    with pytest.raises(RunFailed, match=r"weights are not finite \(backbone.head"):
        carry_out(cfg)
    assert not (cfg.folder / "result.json").exists()
    assert not (cfg.folder / "checkpoints" / "model" / "model.json").exists()


def test_weights_that_broke_in_the_last_step_of_an_epoch_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of that step was still a number."""

    monkeypatch.setattr(LinearProbe, "after_step", lambda self, step: self.backbone.head.weight.data.fill_(torch.nan))
    cfg = config(tmp_path, "dataset.batch_size=5000", "trainer.max_epochs=2")
    with pytest.raises(RunFailed, match="weights are not finite at step 1"):
        carry_out(cfg)
    assert not (cfg.folder / "checkpoints" / "last.ckpt").exists()


def test_a_source_that_diverged_stops_the_run_that_asked_for_it(tmp_path: Path) -> None:
    teacher = " ".join([*PROBE[:5], *DIVERGES, "trainer.max_steps=3"]).replace("linear_probe", "full")
    cfg = config(tmp_path, "method=distiller", f"sources.teacher='{teacher}'", "trainer.max_steps=1")
    with pytest.raises(RunFailed, match=r"the source 'teacher' \(method=full .*\) failed: .* has diverged"):
        carry_out(cfg)
    assert not (cfg.folder / "checkpoints").exists()


@pytest.mark.parametrize("use", ["teacher", "backbone"])
def test_weights_of_an_earlier_version_that_diverged_are_refused(use: str, tmp_path: Path) -> None:
    words = [*PROBE, "method=full", "trainer.max_steps=1"]
    source = carry_out(config(tmp_path, *words))
    file = source / "checkpoints" / "model" / "model.safetensors"
    tensors = load_file(file)
    first = min(name for name in tensors if name.startswith("backbone.model"))
    tensors[first].view(-1)[0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    about = file.with_name("model.json")
    written = {key: said for key, said in read_json(about, "").items() if key != "sha256"}
    write_json(about, written)
    asked = {
        "teacher": ["method=distiller", f"sources.teacher={source}"],
        "backbone": ["method=linear_probe", f"backbone.weights=run:{source}"],
    }[use]
    with pytest.raises(UserError, match=r"no finite numbers .* has diverged"):
        carry_out(config(tmp_path, "trainer.max_steps=1", *asked))


def test_only_what_can_be_broken_is_looked_at() -> None:
    good = {"a": torch.ones(2), "b": torch.arange(3), "c": torch.ones(2).to(torch.float8_e4m3fn), "d": torch.empty(0)}
    assert not_finite(good) == []
    assert not_finite({}) == []
    bad = {"x": torch.tensor([1.0, torch.inf]), "y": torch.tensor([torch.nan], dtype=torch.bfloat16)}
    assert not_finite({**good, **bad}) == ["x", "y"]


def breaks_at(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """The loss of these training batches, counted from one, is no number."""
    count, whole = iter(range(1, 1000)), LinearProbe.training_loss

    def loss(self: LinearProbe, batch: Any, **words: Any) -> Tensor:
        found = whole(self, batch, **words)
        return found * torch.nan if next(count) in calls else found

    monkeypatch.setattr(LinearProbe, "training_loss", loss)


def test_steps_that_are_no_numbers_are_left_out_by_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["trainer.max_steps=4", "trainer.skip_nan=2", "optimizer.weight_decay=0.5"]
    breaks_at(monkeypatch, 1, 2, 3, 4)
    with pytest.raises(RunFailed, match="gradients of 3 steps in a row, up to 3, are no finite numbers"):
        carry_out(config(tmp_path / "all", *words))
    monkeypatch.undo()
    breaks_at(monkeypatch, 2, 3)
    folder = carry_out(config(tmp_path / "some", *words))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["extra"]["notes"][-1] == "2 steps were left out: gradients that are no finite numbers (2, 3)"
    assert not not_finite(load_file(folder / "checkpoints" / "model" / "model.safetensors"))


def test_a_step_that_is_left_out_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["trainer.skip_nan=9", "optimizer.weight_decay=0.5", "optimizer.schedule=constant", "optimizer.warmup=0"]
    weights = []
    for steps, calls in (("trainer.max_steps=1", ()), ("trainer.max_steps=3", (2, 3))):
        with monkeypatch.context() as patch:
            breaks_at(patch, *calls)
            folder = carry_out(config(tmp_path, *words, steps))
        weights.append(load_file(folder / "checkpoints" / "model" / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name

"""Diff vectors through the runner: runs as versions, the target's own score, the line between the bases, stages."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.methods.merging.test_runs import carried_out
from tests.own_configs import own
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.run_folder import BODY_PREFIX, CHECKPOINTS, WEIGHTS

DIGITS = "backbone=vit_tiny dataset=digits dataset.classes=[5,6,7]"
FIRST = f"method=full {DIGITS} backbone.weights=random:0 trainer.max_steps=4"
SECOND = f"method=full {DIGITS} 'backbone.weights=run:{FIRST}' trainer.max_steps=2"
TUNED = f"method=full {DIGITS} 'backbone.weights=run:{FIRST}' trainer.max_steps=8 seed=1"
LORA = TUNED.replace("method=full", "method=lora", 1)


def body(run: Path) -> dict[str, Tensor]:
    tensors = load_file(run / CHECKPOINTS / "model" / WEIGHTS)
    return {n.removeprefix(BODY_PREFIX): t for n, t in tensors.items() if n.startswith(BODY_PREFIX)}


def folder_of(words: str, output: Path) -> Path:
    return compose([*shlex.split(words), f"output_dir={output}"]).folder


def words(*more: str, tuned: str = TUNED) -> list[str]:
    sources = (f"sources.source_tuned={tuned}", f"sources.source_base={FIRST}")
    return ["method=diff_vector", *DIGITS.split(), f"backbone.weights=run:{SECOND}", *sources, *more]


def test_runs_are_versions(shared_runs: Path) -> None:
    run, result = carried_out(shared_runs, *words("method.probe=2"))
    start, tuned, target = (body(folder_of(each, shared_runs)) for each in (FIRST, TUNED, SECOND))
    for name, tensor in body(run).items():
        exact = target[name].double() + (tuned[name].double() - start[name].double())
        torch.testing.assert_close(tensor, exact.float(), rtol=0, atol=1e-7)
    metrics, probe = result["metrics"], result["extra"]["probe"]
    assert [row["along"] for row in probe] == [0.0, 1.0]
    assert probe[0]["without"]["accuracy"] == pytest.approx(metrics["test/target_base/accuracy"], abs=1e-5)
    assert probe[0]["with"]["accuracy"] == pytest.approx(metrics["test/accuracy"], abs=1e-5)
    # at the source's base the vector gives the tuned model, and that of the sum has the tuned model's head
    assert probe[1]["with"]["accuracy"] == pytest.approx(metrics["test/source_tuned/accuracy"], abs=1e-5)
    memory = result["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


def test_a_lora_run_is_folded_into_its_base(shared_runs: Path) -> None:
    run, result = carried_out(
        shared_runs, *words("method.base_score=false", f"sources.target_base={FIRST}", tuned=LORA)
    )
    assert "test/target_base/accuracy" not in result["metrics"]
    # on its own base the vector gives the LoRA run's model
    assert result["metrics"]["test/accuracy"] == pytest.approx(
        result["metrics"]["test/source_tuned/accuracy"], abs=1e-5
    )
    start = body(folder_of(FIRST, shared_runs))
    changed = {name for name, tensor in body(run).items() if not torch.equal(tensor, start[name])}
    assert 0 < len(changed) < len(start) / 2, changed
    assert all("qkv" in name or "attn" in name for name in changed)


def test_what_a_run_refuses(shared_runs: Path) -> None:
    with pytest.raises(UserError, match="needs a source 'source_base'"):
        carried_out(shared_runs, *[word for word in words() if "source_base" not in word])
    with pytest.raises(UserError, match="reads no source 'base'"):
        carried_out(shared_runs, *words(f"sources.base={FIRST}"))
    with pytest.raises(UserError, match="neither a finite number"):
        carried_out(shared_runs, *words("method.lambda=much"))


SHIFT = '''
import torch
from safetensors.torch import load_file

from transfer_run.methods.base import Method


class Shift(Method):
    """A fine-tuning that goes to VERSION + c, wherever it starts."""

    trains = False
    ships = "all"

    def __init__(self, backbone, task, *, version):
        super().__init__(backbone, task)
        self.version = version

    @torch.no_grad()
    def prepare(self, context):
        there = load_file(self.version + "/model.safetensors")
        for name, parameter in self.backbone.model.named_parameters():
            parameter.copy_(there[name] + 0.25)
'''


def test_iterative_recycling_goes_through_the_versions(tmp_path: Path) -> None:
    """Check 10: fine-tune, take the difference, add it to the next version, fine-tune, ... gives M_n + c."""
    node: dict[str, Any] = dict(registry.entry("backbone", "vit_tiny").content["backbone"])
    torch.manual_seed(0)
    model = build_backbone({**node, "weights": "random:0"}).model
    versions = []
    for number in range(3):
        for parameter in model.parameters():  # sixteenths: sums of them are exact
            parameter.data = (torch.randint(-32, 32, parameter.shape) / 16).float()
        (tmp_path / f"m{number}").mkdir()
        save_file(dict(model.state_dict()), tmp_path / f"m{number}" / "model.safetensors")
        versions.append(str(tmp_path / f"m{number}"))
    configs = own(tmp_path / "configs", "method", "shift", "linear_probe", about={"target": "shift.Shift"}, version="x")
    (configs / "shift.py").write_text(SHIFT, encoding="utf-8")
    first, *later = (f"[method=shift,method.version={version}]" for version in versions)
    stages = [first]
    for before, here, tuned in zip(versions, versions[1:], later, strict=False):
        added = f"[method=diff_vector,sources.source_base={before},sources.target_base={here},method.base_score=false]"
        stages += [added, tuned]
    for count in (3, 5):
        run = carry_out(
            compose(
                [*DIGITS.split(), f"backbone.weights={versions[0]}", f"stages=[{','.join(stages[:count])}]",
                 f"output_dir={tmp_path / 'out'}", "hardware=cpu", "trainer.progress=none"],
                config_dir=str(configs),
            )
        )  # fmt: skip
        last = load_file(f"{versions[count // 2]}/model.safetensors")
        assert all(torch.equal(tensor, last[name] + 0.25) for name, tensor in body(run).items())

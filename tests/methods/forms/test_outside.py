"""A form, a data set and a method of a user's own: nothing of the package is touched, and all of it works on them.

The form is one that the package lacks: several labels at once, each there or not, scored by an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer_run.backbones.declared import families
from transfer_run.cli.plan import plan
from transfer_run.cli.run import run
from transfer_run.errors import Preempted, UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.methods.form import Form, find_form
from transfer_run.methods.known_forms import packaged_forms

FORM = '''
"""Several labels at once: logits and labels (B, C), binary cross-entropy, the share of wrong ones."""

from torch.nn import functional as F
from torchmetrics.classification import MultilabelHammingDistance

from transfer_run.methods.form import Form


class SeveralLabels(Form):
    def loss(self, method, logits, labels):
        return F.binary_cross_entropy_with_logits(logits.float(), labels)

    def predict(self, method, batch):
        return (method(batch) > 0).float()

    def scores(self, data, split):
        return Wrong(data.task)


class Wrong:
    needs_predictions, needs_loss = True, False

    def __init__(self, task):
        self.wrong = MultilabelHammingDistance(task.num_labels, validate_args=False)

    def better(self, first, second):
        return first < second

    def update(self, predictions, batch, loss=None, counted=None):
        self.wrong.to(predictions.device).update(predictions, batch["labels"].int())

    def compute(self):
        return {"wrong": float(self.wrong.compute())}

    def reset(self):
        self.wrong.reset()
'''
DATA = '''
"""Noise of 8 x 8 points; label i is there where quarter i is bright."""

import torch

from transfer_run.data.base import DataModule
from transfer_run.task import Task


class Quarters(DataModule):
    @classmethod
    def describe(cls, dataset, backbone):
        return Task(dataset["form"], 4, metrics=tuple(dataset["metrics"]))

    @classmethod
    def batch_spec(cls, dataset, backbone, batch_size):
        pixels, labels = (batch_size, 1, 8, 8), (batch_size, 4)
        return {"pixel_values": (pixels, torch.float32), "labels": (labels, torch.float32)}

    def read(self):
        return {"train": 48, "validation": 16, "test": 16}

    def example(self, split, draw):
        seed = draw.row + {"train": 0, "validation": 1000, "test": 2000}[split]
        pixels = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed))
        quarters = pixels.unfold(1, 4, 4).unfold(2, 4, 4).mean((0, 3, 4)).flatten()
        return {"pixel_values": pixels, "labels": (quarters > 0).float()}

    def collate(self, examples):
        return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}

    label_names = ("a", "b", "c", "d")
    transform_description = {"reads": "images"}
'''
METHOD = """
import torch
from torch import nn

from transfer_run.methods.base import Method


class Gain(Method):
    needs_backbone_gradient = False

    def __init__(self, backbone, task, *, start=1.0):
        super().__init__(backbone, task)
        self.freeze_backbone()
        device = next(backbone.parameters()).device
        self.gain = nn.Parameter(torch.full((backbone.feature_width,), start, device=device))

    def features(self, batch):
        with torch.no_grad():
            frozen = super().features(batch)
        return frozen * self.gain
"""
CONFIGS = {
    "dataset/quarters.yaml": """
# @package _global_
# Noise with bright and dark quarters.
dataset:
  name: quarters
  about: {title: Quarters, target: my_quarters.Quarters, holds: images}
  form: "my_form:SeveralLabels"
  metrics: [wrong]
  batch_size: 16
  max_source_length: null
  path: null
trainer:
  max_epochs: 2
""",
    "method/gain.yaml": """
# @package _global_
# A gain for every channel.
method:
  name: gain
  about: {title: Gain, target: my_gain.Gain, family: tuning, shape: tune}
  start: 1.0
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder: three modules, two configs."""
    own = tmp_path_factory.mktemp("own")
    files = {"my_form.py": FORM, "my_quarters.py": DATA, "my_gain.py": METHOD, **CONFIGS}
    for name, text in files.items():
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text(text.lstrip(), encoding="utf-8")
    return own


@pytest.fixture(scope="module")
def words(folder: Path) -> Callable[..., list[str]]:
    """The words of a run of all three."""

    def of(output: Path, *more: str) -> list[str]:
        own = ["method=gain", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=quarters", "hardware=cpu"]
        quiet = ["trainer.progress=none", "trainer.log_every=1", "trainer.select=best", "optimizer.lr=0.01"]
        return ["--config-dir", str(folder), *own, *quiet, f"output_dir={output}", *more]

    return of


def test_it_runs_plans_goes_on_and_exports(
    words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(words(tmp_path / "whole", f"export={tmp_path / 'out'}"))
    (whole,) = (tmp_path / "whole").glob("runs/quarters/*")
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert set(result["metrics"]) == {"test/wrong", "validation/wrong"}
    assert result["parameters"]["trainable"] == 64 + 64 * 4 + 4
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)

    capsys.readouterr()
    plan([*words(tmp_path), "plan.format=json"])
    planned = json.loads(capsys.readouterr().out)
    assert (planned["dataset"], planned["memory"]["peak"]) == ("quarters", result["memory"]["predicted_peak"])

    with pytest.MonkeyPatch.context() as patch:
        stop_behind(patch, 4)
        with pytest.raises(Preempted):
            run(words(tmp_path / "broken"))
    run(words(tmp_path / "broken"))
    (broken,) = (tmp_path / "broken").glob("runs/quarters/*")
    for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), file

    model = load_model(tmp_path / "out")
    answers = model.predict({"pixel_values": torch.zeros(3, 1, 8, 8)})
    assert answers.shape == (3, 4)
    assert set(answers.flatten().tolist()) <= {0.0, 1.0}


def stop_behind(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let a run be stopped behind an optimizer step, as a cluster does it."""
    import signal

    from transfer_run.experiment.training.checkpoints import Checkpoints

    ordinary = Checkpoints.on_train_batch_end

    def stop(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            self.signals.asked = signal.SIGTERM
        ordinary(self, trainer, *rest)

    patch.setattr(Checkpoints, "on_train_batch_end", stop)


@pytest.mark.parametrize(
    ("form", "said", "near"),
    [
        ("clasification", "There is no form of task 'clasification'", "classification"),
        ("my_fom:SeveralLabels", "The module 'my_fom' cannot be imported", "my_form"),
        ("my_form:", "'my_form.' is no module.Class", None),
    ],
)
def test_a_word_that_is_no_form_gets_one_message(
    form: str, said: str, near: str | None, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run(words(tmp_path, f"dataset.form='{form}'"))
    assert near is None or near in caught.value.nearest
    assert not list(tmp_path.iterdir())


def test_a_class_that_is_no_form_is_named_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(str(folder))
        with pytest.raises(UserError, match="has no form 'Wrong'") as caught:
            find_form("my_form:Wrong")
        assert list(caught.value.nearest) == ["SeveralLabels"]


@pytest.mark.parametrize("name", packaged_forms())
def test_every_file_of_the_room_is_a_form(name: str) -> None:
    assert isinstance(find_form(name), Form)
    assert find_form(name) is find_form(name)


def test_no_word_of_the_packages_data_sets_is_taken_for_a_form_by_accident() -> None:
    cfg = compose(["method=full", "backbone=t5_tiny", "dataset=python_docs", "dataset.task=span_corruption"])
    assert cfg.config["dataset"]["form"] == "span_corruption"
    assert "span_corruption" not in packaged_forms()


def test_a_family_that_writes_answers_an_own_form_as_it_is() -> None:
    writes = families()["t5"]
    assert writes.form({"name": "quarters", "form": "my_form:SeveralLabels"}) == "my_form:SeveralLabels"
    assert writes.form({"name": "digits", "form": "classification"}) == "text_to_text"

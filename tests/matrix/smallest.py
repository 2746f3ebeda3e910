"""What every method is put through: its smallest fitting backbone, embedded data, a few steps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer_run.backbones.declared import families, takes
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.errors import Preempted
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import sources_of
from transfer_run.experiment.training import work as training_work
from transfer_run.experiment.training.checkpoints import Checkpoints
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method

STEPS = 4
EMBEDDED = {"images": "digits", "series": "seasonal_series"}
"""Data that are on every machine, by what a family reads first; else python_docs."""


def about(method: str) -> dict[str, Any]:
    """`method.about` of a packaged method."""
    return dict(registry.entry("method", method, ()).content["method"]["about"])


def methods(*shapes: str) -> list[str]:
    """All packaged methods of these shapes."""
    return [name for name in registry.names("method", ()) if about(name)["shape"] in shapes]


def words(method: str, output: Path | str = "outputs") -> list[str]:
    """The method's smallest run: random weights, four steps."""
    fitting = [name for name, family in families().items() if takes(about(method), family)]
    family = families()[max(fitting)]  # the last by name: a ViT where it may be one
    backbone, dataset = family.smallest, EMBEDDED.get(family.reads[0], "python_docs")
    posed = ["dataset.answers=names"] if backbone == "t5_tiny" else []
    own = about(method).get("matrix", [])
    chosen = {word.partition("=")[0] for word in own}
    general = [
        f"method={method}", f"backbone={backbone}", f"dataset={dataset}", "backbone.weights=random:0",
        f"trainer.max_steps={STEPS}", "trainer.log_every=1", "trainer.progress=none", f"output_dir={output}",
        "hardware=cpu", "optimizer.warmup=0", *posed,
    ]  # fmt: skip
    return [*(word for word in general if word.partition("=")[0] not in chosen), *own]


def build(cfg: Run, *, device: str = "cpu") -> tuple[Method, Any]:
    """Method and data of a composed run, seeded."""
    config: dict[str, Any] = dict(cfg.config)
    torch.manual_seed(0)
    data = build_data(config["dataset"], config["backbone"], 0)
    method = build_method(config["method"], build_backbone(config["backbone"], device=device), data.task)
    method.take_sources(lambda name: untrained(cfg, name))
    return method, data


def untrained(cfg: Run, name: str) -> Method:
    """The model of a source as it is before its run: its shapes are right, and no run is needed."""
    source = next(source for source in sources_of(cfg) if source.name == name)
    assert source.run is not None
    model = build(source.run)[0]
    model.settle()
    return model.eval()


def smallest(method: str) -> tuple[Method, Any]:
    """The method on its smallest fitting backbone, with its data set up."""
    built, data = build(compose(words(method)))
    data.setup()
    return built, data


def batch_of(data: Any, size: int = 8) -> dict[str, torch.Tensor]:
    """The first training batch."""
    return next(iter(data.loader("train", batch_size=size, shuffle=False)))


def carried_out_in_two(cfg: Run, step: int = 2) -> Path:
    """The run's folder: stopped after `step` steps, as a cluster stops it, then carried out again."""
    ordinary = Checkpoints.on_train_batch_end

    def stop(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            self.signals.asked = signal.SIGTERM
        ordinary(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop)
        with pytest.raises(Preempted):
            carry_out(cfg)
    return carry_out(cfg)


def stopped_in_work(cfg: Run, seen: int) -> None:
    """Carry a run out until step number `seen` of its long work (`context.work`), where a cluster stops it."""
    ordinary, steps = training_work.seed_all, iter(range(100_000))

    def stop(value: int) -> None:
        if next(steps) == seen:
            os.kill(os.getpid(), signal.SIGTERM)
        ordinary(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_work, "seed_all", stop)
        with pytest.raises(Preempted):
            carry_out(cfg)
    assert not (cfg.folder / "result.json").exists()

"""A run that is killed in the middle of an epoch reads the rest of that epoch, no batch twice."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

WORDS = ("method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu",
         "profiler=none", "trainer.progress=none", "trainer.log_every=1", "trainer.max_epochs=3")  # fmt: skip

KILLED = """
import os, signal, sys
from transfer_run.experiment.training.checkpoints import Checkpoints

batches = int(sys.argv[1])

def on_train_batch_end(self, trainer, *rest):
    before(self, trainer, *rest)
    self.batches = getattr(self, "batches", 0) + 1
    if self.batches == batches:
        os.kill(os.getpid(), signal.SIGKILL)

before, Checkpoints.on_train_batch_end = Checkpoints.on_train_batch_end, on_train_batch_end
from transfer_run.cli.run import run
run(sys.argv[2:])
"""


def killed_after(batches: int, *words: str) -> None:
    """Carry out a run that saves whenever it may, and kill it behind that of number `batches`."""
    command = [sys.executable, "-c", KILLED, str(batches), *words, "trainer.checkpoint_minutes=1e-9"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("more", "saved"), [((), 5), (("trainer.accumulate=3",), 3)], ids=["every batch a step", "accumulated"]
)
def test_killed_mid_epoch_and_gone_on(more: tuple[str, ...], saved: int, tmp_path: Path) -> None:
    """17 batches an epoch: the kill comes behind the fifth of the second one; summed gradients are in no checkpoint."""
    whole = carry_out(compose([*WORDS, *more, f"output_dir={tmp_path / 'whole'}"]))
    words = [*WORDS, *more, f"output_dir={tmp_path / 'killed'}"]
    folder = compose(words).folder
    killed_after(22, *words)
    stopped = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    assert stopped["epoch"] == 1
    assert stopped["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == saved
    assert carry_out(compose(words)) == folder
    assert "going on from" in (folder / "run.log").read_text(encoding="utf-8")
    for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    with (folder / "metrics.csv").open(encoding="utf-8") as rows:
        steps = [int(row["step"]) for row in csv.DictReader(rows) if row["train/loss"]]
    assert steps == list(range(1, len(steps) + 1))

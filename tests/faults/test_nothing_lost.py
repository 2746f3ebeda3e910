"""What a run records after it was killed equals the undisturbed run's, but for times."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

WORDS = ("backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu", "trainer.progress=none",
         "trainer.log_every=1", "trainer.max_epochs=2", "trainer.select=best", "dataset.batch_size=128")  # fmt: skip
FILES = ("metrics.csv", "checkpoints/model/model.safetensors", "checkpoints/model/model.json")

KILLED = """
import importlib, os, signal, sys

place, calls, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
module, owner, name = place.split(":")
owner = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
before = getattr(owner, name)

def killing(*args, **kwargs):
    global calls
    found = before(*args, **kwargs)
    calls -= 1
    if not calls:
        os.kill(os.getpid(), number)
    return found

setattr(owner, name, killing)
from transfer_run.cli.exits import exit_code
from transfer_run.cli.run import run
sys.exit(exit_code(lambda: run(sys.argv[4:])))
"""

TRAINING = "transfer_run.experiment.training"
MOMENTS = {
    "behind a step": (f"{TRAINING}.checkpoints:Checkpoints:on_train_batch_end", 1),
    "in the second epoch": (f"{TRAINING}.checkpoints:Checkpoints:on_train_batch_end", 9),
    "behind a validation": (f"{TRAINING}.checkpoints:Checkpoints:on_validation_end", 1),
    "behind the last epoch": (f"{TRAINING}.checkpoints:Checkpoints:on_train_end", 1),
    "behind the test": (f"{TRAINING}.module:TransferModule:on_test_epoch_end", 1),
    "behind the model": (f"{TRAINING}.result::save_model", 1),
}


def killed(place: str, calls: int, *words: str, number: int = signal.SIGKILL, code: int = -signal.SIGKILL) -> None:
    """Carry out a run that saves whenever it may, and send it a signal behind a call of a function."""
    sent = [place, str(calls), str(int(number))]
    command = [sys.executable, "-c", KILLED, *sent, *words, "trainer.checkpoint_minutes=1e-9"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def recorded(folder: Path) -> dict[str, Any]:
    """`result.json` without what differs between any two runs."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for name in ("fit_seconds", "samples_per_second"):
        assert result["time"].pop(name) > 0
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(compose([*WORDS, "method=bitfit", f"output_dir={tmp_path_factory.mktemp('whole')}"]))


def same(folder: Path, whole: Path) -> None:
    found, wanted = recorded(folder), recorded(whole)
    for key, value in wanted["memory"].items():
        assert found["memory"][key] == value, key
    assert json.dumps(found) == json.dumps(wanted)
    for file in FILES:
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_anywhere_it_records_the_same(moment: str, whole: Path, tmp_path: Path) -> None:
    words = [*WORDS, "method=bitfit", f"output_dir={tmp_path}"]
    killed(*MOMENTS[moment], *words)
    assert not (compose(words).folder / "result.json").exists()
    same(carry_out(compose(words)), whole)


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize(("moment", "number"), zip(MOMENTS, STOPS, strict=True))
def test_asked_to_stop_anywhere_it_records_the_same(
    moment: str, number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    words = [*WORDS, "method=bitfit", f"output_dir={tmp_path}"]
    killed(*MOMENTS[moment], *words, number=number, code=130 if number == signal.SIGINT else 75)
    assert not (compose(words).folder / "result.json").exists()
    same(carry_out(compose(words)), whole)


@pytest.mark.parametrize("missing", ["result.json", "checkpoints/model", "metrics.csv", "config.yaml"])
def test_a_record_is_made_again_from_the_last_checkpoint(missing: str, whole: Path, tmp_path: Path) -> None:
    words = [*WORDS, "method=bitfit", f"output_dir={tmp_path}"]
    folder = compose(words).folder
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    if (folder / missing).is_dir():
        shutil.rmtree(folder / missing)
    else:
        (folder / missing).unlink(missing_ok=True)
    same(carry_out(compose(words)), whole)


def test_the_best_weights_are_not_replaced_by_the_last(whole: Path, tmp_path: Path) -> None:
    words = [*WORDS, "method=bitfit", f"output_dir={tmp_path}"]
    folder = compose(words).folder
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="best weights so far are gone"):
        carry_out(compose(words))

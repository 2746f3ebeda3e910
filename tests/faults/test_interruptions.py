"""Runs that are stopped, killed, started twice or find a damaged checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

PROBE = ("method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu")
BIN = Path(sys.executable).parent / "transfer-run"


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(BIN), *PROBE, f"output_dir={tmp_path}", "trainer.progress=none", *words]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, number: int, code: int) -> None:
    words = ("trainer.max_epochs=4000", "profiler=none", "trainer.log_every=1")
    run = start(tmp_path, *words)
    folder = compose([*PROBE, f"output_dir={tmp_path}", *words]).folder
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    run.send_signal(number)
    try:
        output = run.communicate(timeout=60)[0]
    finally:
        run.kill()
    assert run.returncode == code, output
    assert "Traceback" not in output
    assert not (folder / "result.json").exists()
    resumed = start(tmp_path, *words)
    time.sleep(0.1)
    log = folder / "run.log"
    while "going on from" not in log.read_text(encoding="utf-8") and resumed.poll() is None:
        time.sleep(0.2)
    resumed.terminate()  # counts from the first instant of a process
    try:
        assert resumed.wait(timeout=120) == 75
    finally:
        resumed.kill()
    assert "going on from" in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_at_once_share_one_run(tmp_path: Path) -> None:
    runs = [start(tmp_path, "trainer.max_epochs=3") for _ in range(2)]
    outputs = [run.communicate(timeout=180)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    results = list(tmp_path.glob("runs/**/result.json"))
    assert len(results) == 1
    assert sum("run " + str(results[0].parent) in output for output in outputs) == 1


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_result_of_an_unbroken_one(tmp_path: Path) -> None:
    words = ("trainer.max_epochs=25", "profiler=none", "trainer.log_every=1")
    folder = compose([*PROBE, f"output_dir={tmp_path}", *words]).folder
    run = start(tmp_path, *words)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait(timeout=30)
    assert not (folder / "result.json").exists()
    carry_out(compose([*PROBE, f"output_dir={tmp_path}", "trainer.progress=none", *words]))
    whole = carry_out(compose([*PROBE, f"output_dir={tmp_path / 'whole'}", "trainer.progress=none", *words]))
    first, second = (json.loads((f / "result.json").read_text(encoding="utf-8"))["metrics"] for f in (folder, whole))
    assert first == second
    assert (folder / "metrics.csv").read_text(encoding="utf-8") == (whole / "metrics.csv").read_text(encoding="utf-8")


def test_a_damaged_checkpoint_is_named_and_nothing_lost(tmp_path: Path) -> None:
    cfg = compose([*PROBE, f"output_dir={tmp_path}", "trainer.max_steps=3", "trainer.progress=none"])
    checkpoint = cfg.folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a checkpoint")
    with pytest.raises(UserError, match="damaged"):
        carry_out(cfg)
    assert checkpoint.read_bytes() == b"half a checkpoint"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    words = ["method=full", *PROBE[1:], f"output_dir={folder}", "trainer.max_steps=3", "trainer.progress=none"]
    return carry_out(compose(words))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("result.json", ["export=out"]),
        ("checkpoints/model/model.json", ["export=out"]),
        ("checkpoints/model/model.safetensors", ["export=out"]),
        ("checkpoints/model/model.json", []),
        ("checkpoints/model/model.safetensors", []),
    ],
)
def test_a_damaged_file_of_a_finished_run_is_named(finished: Path, tmp_path: Path, file: str, words: list[str]) -> None:
    """Exported, or taken as another run's backbone: one message, exit code 2, and the file is left as it is."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[: len(whole) // 2])
    asked = [f"run={run}", *words] if words else [*PROBE, f"backbone.weights={run}/checkpoints/model"]
    done = subprocess.run([str(BIN), *asked], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert Path(file).name in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / file).read_bytes() == whole[: len(whole) // 2]

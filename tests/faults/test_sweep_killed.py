"""A sweep whose process is killed twice and given again ends as one that was never disturbed, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent / "transfer-run"
WORDS = ("-m", "method=linear_probe,bitfit", "seed=0,1,2", "backbone=vit_tiny", "dataset=digits", "hardware=cpu",
         "backbone.weights=random:0", "trainer.max_epochs=2", "trainer.progress=none", "profiler=none")  # fmt: skip


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(BIN), *WORDS, f"output_dir={folder}", *words]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder.parent
    )


def finished(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("result.json"))


def contents(folder: Path) -> dict[str, tuple[bytes, bytes, object]]:
    """Of every run what must not depend on its starts: logged metrics, weights, scores."""
    return {
        run.name: (
            (run / "metrics.csv").read_bytes(),
            (run / "checkpoints" / "model" / "model.safetensors").read_bytes(),
            json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"],
        )
        for run in finished(folder)
    }


@pytest.mark.long
def test_a_sweep_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    output = whole.communicate(timeout=600)[0]
    assert whole.returncode == 0, output
    for count in (1, 4):
        sweep = start(tmp_path / "broken", "sweep.parallel=2")
        deadline = time.monotonic() + 300
        while len(finished(tmp_path / "broken")) < count and time.monotonic() < deadline and sweep.poll() is None:
            time.sleep(0.1)
        sweep.kill()
        sweep.communicate()
    last = start(tmp_path / "broken", "sweep.parallel=2")
    output = last.communicate(timeout=600)[0]
    assert last.returncode == 0, output
    assert "6 of 6 runs finished" in output
    assert len(contents(tmp_path / "broken")) == 6
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")

"""Kills runs at random moments, lets the same commands go on, and compares what they record with undisturbed runs.

    python scripts/kills.py [--kills 50] [--seed 0]

Each scenario is carried out once undisturbed and once under kill -9 (the process alone, as an out-of-memory killer does
it), at moments drawn over the undisturbed run's whole time: imports, sources, preparation, training, checkpoints, test,
record. `result.json` but for times, `metrics.csv` and the model must then be equal, byte for byte. Exit 1 where one is
not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL = ("hardware=cpu", "trainer.progress=none", "trainer.checkpoint_minutes=1e-9", "trainer.log_every=1")
ON_DIGITS = ("backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "dataset.batch_size=128")
SOURCE = "method=full backbone=vit_tiny dataset=digits backbone.weights=random:0 trainer.max_epochs=2 seed={}"
SCENARIOS: dict[str, tuple[str, ...]] = {
    "training": ("method=bitfit", *ON_DIGITS, "trainer.max_epochs=4", "trainer.select=best", *SMALL),
    "a source": ("method=lora", "backbone=vit_tiny", "dataset=digits", f"backbone.weights=run:{SOURCE.format(0)}",
                 "trainer.max_epochs=2", *SMALL),
    "a merge": ("method=average", "dataset=none", f"sources.a={SOURCE.format(0)}", f"sources.b={SOURCE.format(1)}",
                *SMALL),
    "stored taps": ("method=unipt", *ON_DIGITS, "cache.taps=disk", "profiler.memory=false", "trainer.max_epochs=3",
                    *SMALL),
    "two processes": ("method=bitfit", *ON_DIGITS, "hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2",
                      "hardware.num_workers=0", "trainer.max_epochs=3", "profiler.memory=false", *SMALL[1:]),
    "shards": ("method=full", *ON_DIGITS, "hardware=fsdp", "hardware.accelerator=cpu", "hardware.devices=2",
               "hardware.num_workers=0", "trainer.max_epochs=3", "profiler.memory=false", *SMALL[1:]),
}  # fmt: skip
FILES = ("metrics.csv", "checkpoints/model/model.safetensors")
TIMES = ("fit_seconds", "samples_per_second", "seconds")


def start(words: tuple[str, ...], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "transfer-run"), *words, f"output_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(words: tuple[str, ...], folder: Path) -> float:
    """Carry out a run to its end; seconds it took."""
    begin = time.monotonic()
    run = start(words, folder)
    said = run.communicate(timeout=1200)[0]
    if run.returncode or "Traceback" in said:
        raise SystemExit(f"exit {run.returncode} of {' '.join(words)}:\n{said}")
    return time.monotonic() - begin


def recorded(folder: Path) -> dict[str, Any]:
    """What all finished runs below a folder left, by run and file, without times."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "runs").rglob("result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        name = str(path.parent.relative_to(folder))
        found[f"{name}/result.json"] = json.dumps(_timeless(result)).replace(str(folder), "")
        for file in FILES:
            if (path.parent / file).is_file():
                found[f"{name}/{file}"] = (path.parent / file).read_bytes()
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in TIMES}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def killed(words: tuple[str, ...], folder: Path, seconds: float, kills: int, draw: random.Random) -> list[Path]:
    """Kill the run until that many kills met it at work; one that ended before its kill is begun anew elsewhere.

    Returns:
        The folders of all that were begun, each with a finished run.
    """
    lives, hit = [folder / "0"], 0
    while hit < kills:
        run = start(words, lives[-1])
        try:
            run.wait(timeout=draw.uniform(0.3, seconds))
        except subprocess.TimeoutExpired:
            run.kill()
            hit += 1
        else:
            lives.append(folder / str(len(lives)))
        run.communicate(timeout=120)
    for each in lives:
        finish(words, each)  # the last one; of the others it is seen that they ended well
    return lives


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=50, help="over all scenarios")
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    draw, wrong, kills = random.Random(asked.seed), 0, -(-asked.kills // len(SCENARIOS))
    for name, words in SCENARIOS.items():
        place = Path(tempfile.mkdtemp(prefix="kills-"))
        try:
            seconds = finish(words, place / "whole")
            lives = killed(words, place / "killed", seconds, kills, draw)
            one = recorded(place / "whole")
            differing = []
            for each in lives:
                other = recorded(each)
                differing += sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        finally:
            shutil.rmtree(place)
        outcome = f"DIFFERENT: {', '.join(differing)}" if differing else f"{len(one)} files of each equal"
        print(f"{name} ({seconds:.0f} s): {kills} kills while it ran, {len(lives)} runs; {outcome}", flush=True)
        wrong += len(differing)
    print(f"{kills * len(SCENARIOS)} kills, {wrong} files that differ")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()

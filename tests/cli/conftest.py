"""Commands as their users call them, and a stand-in for the part that trains."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = Path(__file__).parents[1] / "user_configs"
"""A folder of configs and modules outside the package."""

TOY = ("--config-dir", str(USER), "method=toy", "backbone=small", "dataset=sentences")
"""A valid run of the user's own parts."""


@dataclass
class Answer:
    """What a command said.

    Attributes:
        seconds: processor time, which other work on the machine does not lengthen.
    """

    code: int
    out: str
    err: str
    seconds: float


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Answer]:
    """Call `transfer-NAME ARGUMENTS` in an empty folder."""

    def call(name: str, *arguments: str, **environment: str) -> Answer:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", f"transfer_run.cli.{name}", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Answer(done.returncode, done.stdout, done.stderr, seconds)

    return call


STAND_IN = '''
"""Stands in for the part that trains: the seed says what happens."""
import sys, types
from pathlib import Path

def carry_out(cfg):
    from transfer_run.errors import Preempted, RunFailed, UserError
    if cfg.config["seed"] == 2:
        raise UserError("no network", remedy="name local weights")
    if cfg.config["seed"] == 1:
        raise ArithmeticError("it broke")
    if cfg.config["seed"] == 11:
        raise RunFailed(Path("some/run.log"), "it broke in a worker")
    if cfg.config["seed"] == 75:
        raise Preempted("stopped, saved")
    if cfg.config["seed"] == 130:
        raise KeyboardInterrupt
    if cfg.config["seed"] == 9:
        import os
        os._exit(9)
    import importlib
    toy = importlib.import_module("toy").NAME if cfg.config["method"]["name"] == "toy" else "none"
    print(f"carried out {cfg.chosen('method')} seed {cfg.config['seed']} with module {toy}", flush=True)
    folder = Path(cfg.config["output_dir"]) / "runs" / str(cfg.config["seed"])
    folder.mkdir(parents=True)
    if cfg.config["seed"] in (5, 6):
        import json
        memory = {"peak": 3 * 2**20, "source": "tracker", "predicted_peak": 3 * 2**20}
        result = {"status": "finished", "identity": "0" * 64, "memory": memory,
                  "metrics": {"test/accuracy": cfg.config["seed"] / 10, "test/f1": 0.25}, "time": {"fit_seconds": 1.5},
                  "parameters": {"total": 10, "trainable": 2}}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        (folder / "config.yaml").write_text("dataset: {metrics: [accuracy, f1]}", encoding="utf-8")
    return folder

module = types.ModuleType("transfer_run.experiment.run")
module.carry_out = carry_out
sys.modules[module.__name__] = module
'''


@pytest.fixture
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH: in every process that has it, `carry_out` does what the seed says and trains nothing."""
    folder = tmp_path_factory.mktemp("stand_in")
    (folder / "sitecustomize.py").write_text(STAND_IN)
    return str(folder)

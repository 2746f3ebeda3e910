"""A wheel, installed into an environment of its own, carries the configs and runs from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel installed; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
    python = folder / "venv" / "bin" / "python"
    wheel = str(next(folder.glob("*.whl")))
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", wheel], check=True, timeout=120)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "venv"


def answer(environment: Path, folder: Path, *command: str) -> str:
    """What an installed command prints in an empty folder."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=folder, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_an_installed_wheel_carries_its_configs(environment: Path, tmp_path: Path) -> None:
    where = answer(environment, tmp_path, "python", "-c", "import transfer_run; print(transfer_run.__file__)")
    assert where.startswith(str(environment))
    assert "name: lora" in answer(environment, tmp_path, "transfer-run", "--cfg", "job", "method=lora")
    assert "lst/table1" in answer(environment, tmp_path, "transfer-list", "tables")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_an_installed_wheel_runs_the_embedded_default(environment: Path, tmp_path: Path) -> None:
    """The one that needs no package: from random weights and for two steps, where it pretrains first."""
    words = ("backbone=t5_tiny", "backbone.weights=random:0", "trainer.max_steps=2")
    shown = answer(environment, tmp_path, "transfer-run", *words)
    assert "test/accuracy" in shown
    result = json.loads(next(tmp_path.glob("outputs/runs/python_docs/lst-t5_tiny-*/result.json")).read_bytes())
    assert result["status"] == "finished"

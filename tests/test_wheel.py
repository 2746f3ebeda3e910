"""A wheel carries the configs and runs from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_unpacked_wheel_composes_and_lists_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "transfer_run" / "configs" / "run.yaml").is_file()
    code = (
        "import transfer_run, sys; from transfer_run.cli.run import main; "
        "print(transfer_run.__file__); sys.argv = ['transfer-run', '--cfg', 'job', 'method=lora']; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True)
    assert str(site) in shown.stdout, shown.stderr
    assert "name: lora" in shown.stdout
    assert not list(empty.iterdir())

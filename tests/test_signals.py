"""Signals from a process's first instant: each is answered once, wherever it comes, and none is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_run.signals import STOPS

IMPORTING = """
import os, signal, sys
wanted, number = sys.argv[1], int(sys.argv[2])
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from transfer_run.cli.run import main
sys.argv = ["transfer-run", *sys.argv[3:]]
main()
"""
"""A command that gets a signal in the middle of an import."""
COLLECTED = """
import os, signal, sys, time
from transfer_run.cli.exits import exit_code
class Thing:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000): pass
def command():
    thing = Thing()
    del thing
    time.sleep(60)
sys.exit(exit_code(command))
"""


def code_of(script: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300, cwd=cwd
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", STOPS)
def test_while_words_are_read(number: signal.Signals, tmp_path: Path) -> None:
    code, said = code_of(IMPORTING, "hydra", str(int(number)), "dataset=digits", cwd=tmp_path)
    assert code == 75, said
    assert said.startswith(f"stopped by {number.name}")
    assert "Traceback" not in said


def test_while_torch_is_imported(tmp_path: Path) -> None:
    words = ["method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu"]
    code, said = code_of(IMPORTING, "torch.nn", str(int(signal.SIGTERM)), *words, cwd=tmp_path)
    assert code == 75, said
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_while_an_object_is_collected(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """What is raised there goes nowhere: the signal comes again."""
    found, said = code_of(COLLECTED, str(int(number)), cwd=tmp_path)
    assert found == code, said
    assert "Traceback" not in said


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """`nohup` and the like."""
    script = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + COLLECTED.replace(
        "time.sleep(60)", "pass"
    )
    assert code_of(script, str(int(signal.SIGHUP)), cwd=tmp_path) == (0, "")


def test_while_a_process_leaves(tmp_path: Path) -> None:
    """Clusters send it again: the message and the code are those of the first."""
    script = (
        "import atexit, os, signal, sys\nfrom transfer_run.cli.exits import exit_code\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.exit(exit_code(lambda: os.kill(os.getpid(), signal.SIGUSR1)))"
    )
    code, said = code_of(script, cwd=tmp_path)
    assert code == 75
    assert said.startswith("stopped by SIGUSR1")


def test_a_command_that_is_done_is_done(tmp_path: Path) -> None:
    script = (
        "import atexit, os, signal, sys\nfrom transfer_run.cli.exits import exit_code\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\nsys.exit(exit_code(lambda: 0))"
    )
    assert code_of(script, cwd=tmp_path) == (0, "")

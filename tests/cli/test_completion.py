"""TAB: groups, nested choices, keys and their closed choices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TOY, USER
from transfer_run.cli.completion import complete

LINE = f"transfer-run --config-dir {USER} method=toy backbone=small dataset=sentences "


@pytest.mark.parametrize(
    ("word", "offered", "not_offered"),
    [
        ("me", ["method=", "method."], ["dataset="]),
        ("method=to", ["method=toy"], ["method=full"]),
        ("+experiment=", ["+experiment=good"], []),
        ("dataset=suite", ["dataset=suite/pictures"], ["dataset=sentences"]),
        ("dataset=", ["dataset=suite/pictures", "dataset=sentences"], ["dataset=suite"]),
        ("method.de", ["method.depth="], ["method.mode="]),
        ("method.mode=", ["method.mode=plain", "method.mode=gated", "method.mode=null"], []),
        ("hardware.precision=b", ["hardware.precision=bf16-mixed", "hardware.precision=bf16-true"], []),
        ("hydra/launcher=", ["hydra/launcher=joblib", "hydra/launcher=slurm"], []),
        ("nothing", [], ["method="]),
    ],
)
def test_offers(word: str, offered: list[str], not_offered: list[str]) -> None:
    offers = complete(LINE + word)
    assert set(offered) <= set(offers)
    assert not set(not_offered) & set(offers)
    assert all(offer.startswith(word) for offer in offers)


@pytest.mark.parametrize(
    "line", ["transfer-run ", "transfer-run", "transfer-run method=nothing --cfg job ", "transfer-run --nonsense x"]
)
def test_never_an_error(line: str) -> None:
    complete(line)


def test_everything_is_offered_at_the_start() -> None:
    assert {"method=", "backbone=", "dataset=", "seed="} <= set(complete("transfer-run "))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize("command", ["transfer-run", "transfer-plan"])
def test_bash_completes(tmp_path: Path, command: str) -> None:
    """As a user's shell does it: install, then ask for what may follow."""
    executable = Path(sys.executable).parent / command
    line = f"{executable} {' '.join(TOY)} method=to"
    script = f"""
eval "$({executable} --shell-completion install=bash)"
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
hydra_bash_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.stdout.split() == ["method=toy"], done.stderr

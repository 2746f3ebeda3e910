"""docs/cluster.md: its words are valid, and its table of keys is that of the config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from transfer_run.experiment.config.compose import Composer

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
COMMANDS = [line for line in LINES if "transfer-run " in line and "sweep.status" not in line and "#SBATCH" not in line]


@pytest.mark.parametrize("line", COMMANDS)
def test_its_words_are_valid(line: str) -> None:
    words = shlex.split(line.partition(" &")[0])
    words = words[words.index("transfer-run") + 1 :]
    composer = Composer()
    jobs = composer.jobs(composer.normalise([word for word in words if word != "-m"]))
    assert [composer.compose(job).identity for job in jobs]
    assert len(jobs) == (1 if "-m" not in words else 2 if "lora" not in line else 6)


def test_all_commands_are_there() -> None:
    assert len(COMMANDS) == 12


def test_its_table_names_the_keys_and_their_defaults() -> None:
    root = Path(__file__).parents[1] / "configs" / "hardware" / "auto.yaml"
    node = yaml.safe_load(root.read_text(encoding="utf-8"))["slurm"]
    table = PAGE.partition("`hardware.slurm.`")[2].partition("What becomes")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", table, re.M)
    told = {key: default for keys, default in rows for key in re.findall(r"`(\w+)`", keys)}
    assert set(told) == set(node)
    for key in ("minutes", "save_seconds", "parallel"):
        assert told[key] == str(node[key])

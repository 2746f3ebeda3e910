"""`transfer-run`: help, Hydra's own abilities, and how a run's end becomes an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import TOY, Answer
from transfer_run.experiment.config import registry


def test_help_names_groups_flags_and_lists_and_is_fast(process: Callable[..., Answer]) -> None:
    answer = process("run", "--help")
    assert answer.code == 0
    for word in ("method", "backbone", "transfer-list", "--multirun", "lst", "Exit codes", "--config-dir"):
        assert word in answer.out
    assert str(registry.config_root() / "run.yaml") in answer.out
    assert answer.seconds < 1


def test_version(command: Callable[..., Answer]) -> None:
    assert command("run", "--version").out.startswith("transfer-run ")


def test_cfg_prints_the_composed_config(command: Callable[..., Answer]) -> None:
    answer = command("run", *TOY, "--cfg", "job", "method.depth=4")
    assert answer.code == 0
    printed = yaml.safe_load(answer.out)
    assert (printed["method"]["depth"], printed["dataset"]["name"]) == (4, "sentences")
    assert "hydra" not in printed
    part = command("run", *TOY, "--cfg", "job", "--package", "method.inner", "--resolve")
    assert yaml.safe_load(part.out) == {"bias": True, "label": "words"}


@pytest.mark.parametrize(("flags", "expected"), [(["--info"], "toy"), (["--info", "searchpath"], "command-line")])
def test_info(flags: list[str], expected: str, command: Callable[..., Answer]) -> None:
    answer = command("run", *flags, *TOY)
    assert answer.code == 0
    assert expected in answer.out


def test_hydra_help(command: Callable[..., Answer]) -> None:
    assert "Hydra" in command("run", "--hydra-help").out


def test_the_search_path_may_be_hydras_own_word(command: Callable[..., Answer]) -> None:
    words = [f"hydra.searchpath=[file://{TOY[1]}]", *TOY[2:]]
    assert yaml.safe_load(command("run", "--cfg", "job", *words).out)["method"]["name"] == "toy"


def test_a_run_of_the_users_own_method(command: Callable[..., Answer], stand_in: None, tmp_path: Path) -> None:
    """Its module stands beside its config, in no package; the folder holds the run and nothing of Hydra's."""
    answer = command("run", *TOY, "seed=3")
    assert (answer.code, answer.out) == (0, "carried out toy seed 3 with module toy\n"), answer.err
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {".lock", "config.yaml", "result.json"}
    assert len(list((tmp_path / "outputs" / "runs" / "sentences").iterdir())) == 1


def test_no_words_at_all_run_the_embedded_default(command: Callable[..., Answer], stand_in: None) -> None:
    answer = command("run")
    assert (answer.code, answer.out) == (0, "carried out lst seed 0 with module none\n"), answer.err


@pytest.mark.parametrize(
    ("seed", "code", "message"),
    [
        ("2", 2, "no network\n  do:      name local weights"),
        ("11", 1, "it broke in a worker\n  log: some/run.log"),
        ("75", 75, "stopped, saved"),
        ("130", 130, "Interrupted"),
    ],
)
def test_how_a_run_ends(seed: str, code: int, message: str, command: Callable[..., Answer], stand_in: None) -> None:
    answer = command("run", *TOY, f"seed={seed}")
    assert answer.code == code
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_a_run_that_breaks_leaves_its_traceback_in_its_log(
    command: Callable[..., Answer], stand_in: None, tmp_path: Path
) -> None:
    answer = command("run", *TOY, "seed=1")
    assert answer.code == 1
    assert "ArithmeticError: it broke" in answer.err
    assert "Traceback" not in answer.err
    log = next(tmp_path.rglob("run.log"))
    assert f"log: {log.relative_to(tmp_path)}" in answer.err
    assert log.parent.name.startswith("toy-small-")
    assert "Traceback" in log.read_text()
    assert "ArithmeticError: it broke" in log.read_text()

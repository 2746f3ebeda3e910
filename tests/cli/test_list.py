"""`transfer-list`: what there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import USER, Answer
from transfer_run.cli.list import columns, show
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry


def test_the_list_is_fast_and_names_title_and_family(process: Callable[..., Answer]) -> None:
    answer = process("list", "methods", "--config-dir", str(USER))
    assert answer.code == 0
    lines = {line.split()[0]: line for line in answer.out.splitlines()}
    assert "tuning" in lines["toy"]
    assert "A toy of mine" in lines["toy"]
    assert "Ladder Side-Tuning" in lines["lst"]
    assert list(lines) == sorted(lines)
    assert answer.seconds < 1


@pytest.mark.parametrize("kind", sorted(registry.KINDS))
def test_every_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    show([kind, "--format", "json"])
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == registry.names(registry.KINDS[kind])
    assert all(set(entry) == {"name", "title", "family", "file"} for entry in listed)


@pytest.mark.parametrize(
    ("pattern", "names"), [("suite/*", ["suite/pictures"]), ("pict", ["suite/pictures"]), ("sentence?", ["sentences"])]
)
def test_a_pattern(pattern: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    show(["datasets", pattern, "--format", "json", "--config-dir", str(USER)])
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == names


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["metods"], "methods"),
        (["method"], "methods"),
        (["methods", "tay", "--config-dir", str(USER)], "toy"),
        (["methods", "--format", "yaml"], None),
        (["methods", "--config-dir", "nowhere"], None),
        (["methods", "--fromat", "json"], None),
    ],
)
def test_wrong_words(arguments: list[str], near: str | None, command: Callable[..., Answer]) -> None:
    with pytest.raises(UserError) as error:
        show(arguments)
    if near is not None:
        assert near in error.value.nearest
    answer = command("list", *arguments)
    assert answer.code == 2
    assert answer.err.startswith(error.value.what)
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("kind", sorted(registry.KINDS))
def test_nothing_is_listed_that_is_yet_to_be_filled_in(kind: str) -> None:
    assert [e.name for e in registry.entries(registry.KINDS[kind]) if "${" in e.title + e.family] == []


def test_a_family_that_another_key_sets(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    text = "# @package _global_\ndataset:\n  about: {title: 'of ${dataset.task}, ${seed}'}\n  task: mine\n"
    (tmp_path / "dataset" / "own.yaml").write_text(text + "  form: ${dataset.task}\n", encoding="utf-8")
    entry = registry.entry("dataset", "own", [tmp_path])
    assert (entry.family, entry.title) == ("mine", "of mine, ${seed}")
    assert registry.entry("dataset", "python_docs").family == "classification"


def test_titles_are_cut_at_the_terminals_width_and_never_in_a_pipe() -> None:
    found = registry.entries("method")
    assert max(map(len, columns(found, 0))) > 60
    narrow = columns(found, 60)
    assert max(map(len, narrow)) <= 60
    assert any(line.endswith("...") for line in narrow)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    show([])
    assert "transfer-list methods" in capsys.readouterr().out

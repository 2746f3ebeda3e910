"""The page of every choice: said in words, in commands that are right, and in figures that were recorded."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import USER
from transfer_run.backbones.declared import families
from transfer_run.cli.list import show
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import Composer
from transfer_run.tables.pages import evidence
from transfer_run.tables.pages.describe import TELL, commands, page
from transfer_run.tables.pages.page import in_markdown, in_terminal
from transfer_run.tables.spec import TableSpec, read

GROUPS = ("method", "dataset", "backbone")
FILLED_IN = re.compile(r"\b(FOLDER|FILE|OUT|TABLE)\b|dataset=[AB]\b|\.\.\.")
"""What a reader fills in."""


def told(group: str, name: str) -> list[str]:
    return commands(group, name, registry.entry(group, name).content[group])


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_method_says_what_it_does_and_when_to_choose_it(name: str) -> None:
    about = registry.entry("method", name).content["method"]["about"]
    sentences = re.findall(r"[.?](?: |$)", re.sub(r"\(.*?\)|e\.g\.|i\.e\.", "", about["does"]))
    assert 1 <= len(sentences) <= 3, about["does"]
    assert len(about["choose"].split()) > 8, about["choose"]
    assert len(told("method", name)) == 3


@pytest.mark.parametrize("group", GROUPS)
def test_every_page_is_whole_and_fits(group: str) -> None:
    for name in registry.names(group):
        shown = page(group, name)
        text = in_terminal(shown, 90)
        content = registry.entry(group, name).content[group]
        for key in set(content) - {"name", "about"}:
            assert f"  {group}.{key}" in text, (name, key)
        assert "COMMANDS" in text
        head = [line for line in text.partition("OPTIONS")[0].splitlines() if not line.startswith("  transfer-")]
        assert "${" not in "".join(head), name
        assert max(map(len, head)) <= 90
        assert in_markdown(shown).startswith(f"# {name}\n")


SHARED = sorted({line for group in GROUPS for name in registry.names(group) for line in told(group, name)})


def test_the_commands_of_the_pages_are_right() -> None:
    """Each composes as it stands, but for those in which a reader fills something in; none of those is misspelt."""
    composer = Composer([])
    checked = 0
    for line in SHARED:
        program, *words = shlex.split(line)
        assert program in ("transfer-run", "transfer-plan"), line
        if FILLED_IN.search(line) or "-m" in words or program == "transfer-plan":
            continue
        composer.compose(composer.normalise(words))
        checked += 1
    assert checked > 100


def test_the_page_is_printed_fast_and_without_torch() -> None:
    code = ("import sys; from transfer_run.cli.list import show; show(['methods', 'lst']); "
            "print(sorted({'torch', 'hydra', 'omegaconf', 'lightning'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "WHEN TO CHOOSE IT" in done.stdout


def test_a_name_is_a_page_and_a_part_of_names_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    show(["methods", "lora"])
    text = capsys.readouterr().out
    assert "  method.rank=32 " in text
    assert "\nAlso: peft/adalora, peft/delora," in text
    show(["methods", "lor"])
    assert capsys.readouterr().out.startswith("lora ")
    show(["methods", "lora", "--format", "md"])
    assert capsys.readouterr().out.startswith("# lora\n")
    show(["methods", "lora", "--format", "json"])
    assert "lora" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    show(["hardware", "cpu"])
    assert "transfer-run hardware=cpu" in capsys.readouterr().out
    show(["tables", "lst/table1"])
    assert capsys.readouterr().out.startswith("lst/table1 ")


def test_a_page_is_of_one_choice() -> None:
    with pytest.raises(UserError, match="of one choice"):
        show(["methods", "--format", "md"])


def test_a_method_of_ones_own_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    show(["methods", "toy", "--config-dir", str(USER)])
    text = capsys.readouterr().out
    assert "A toy of mine" in text
    assert "transfer-run method=toy" in text


def test_where_a_command_runs_is_where_the_method_works() -> None:
    assert told("method", "hst")[0] == "transfer-run method=hst backbone=vit_tiny dataset=digits"
    assert told("method", "double_finetuning")[0].startswith("transfer-run experiment=")
    assert told("dataset", "glue/rte")[0] == "transfer-run method=lst dataset=glue/rte backbone=t5-base"
    assert "dataset.path=FOLDER" in told("dataset", "image_folder")[0]
    assert "method=lst" not in told("backbone", "cnn_tiny")[0], "it is not defined on a CNN"
    assert told("backbone", "gpt2")[0] == "transfer-run method=lst backbone=gpt2 dataset=glue/rte"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TableSpec]:
    """Writes a recorded result of a table, as `--record` does."""

    def write(name: str, cells: list[dict[str, Any]], **more: Any) -> TableSpec:
        path = tmp_path / f"{name.replace('/', '_')}.json"
        path.write_text(json.dumps({"table": name, "cells": cells, **more}), encoding="utf-8")
        monkeypatch.setattr(evidence, "recorded_file", lambda asked: tmp_path / f"{asked.replace('/', '_')}.json")
        return read(name)

    return write


def test_a_method_works_on_families_that_answer_what_it_trains() -> None:
    """One of classification does not list forecasters, which have pooled features too."""
    node = registry.entry("method", "batchformer").content["method"]
    said = dict(TELL["method"]("batchformer", node, ()))
    listed = {key.removeprefix("family ") for key in said if key.startswith("family ")}
    assert {"vit", "encoder", "t5"} <= listed
    assert not listed & {name for name, family in families().items() if family.answers == ("forecasting",)}
    forecaster = registry.entry("backbone", "dlinear").content["backbone"]
    assert "batchformer" not in dict(TELL["backbone"]("dlinear", forecaster, ()))["methods"]


def test_recorded_figures_stand_on_the_pages_of_all_that_made_them(record: Callable[..., TableSpec]) -> None:
    cells: list[dict[str, Any]] = [
        {"row": "full", "column": "rte", "ours": 71.5, "spread": 0.25},
        {"row": "full", "column": "avg", "ours": 80.0},
        {"row": "full", "column": "cola", "ours": None},
        {"row": "adapters", "column": "rte", "ours": 70.0},
    ]
    spec = record("lst/table1", cells)
    full = evidence.measured("method", "full", spec)
    assert full is not None
    assert [group.heading for group in full.groups] == ["row", "rte (%)", "mean of the eight (%)"]
    assert full.rows == [["full", "71.5 ± 0.25", "80"]]
    data = evidence.measured("dataset", "glue/rte", spec)
    assert data is not None
    assert data.rows == [["full", "71.5 ± 0.25"], ["adapters", "70"]]
    assert evidence.measured("dataset", "glue/cola", spec) is None
    assert evidence.measured("method", "lora", spec) is None
    text = in_terminal(page("method", "full"), 100)
    assert "MEASURED" in text
    assert "71.5 ± 0.25" in text
    assert "| full | 71.5 ± 0.25 | 80 |" in in_markdown(page("method", "full"))


def test_smoke_is_no_measurement(record: Callable[..., TableSpec]) -> None:
    spec = record("lst/table1", [{"row": "full", "column": "rte", "ours": 15.0}], scale="smoke")
    assert evidence.measured("method", "full", spec) is None
    assert "MEASURED" not in in_terminal(page("method", "full"), 100)


def test_pages_name_the_tables_that_a_choice_stands_in() -> None:
    assert "lst/table1" in [spec.name for spec in evidence.tables_of("dataset", "glue/rte")]
    assert {"lst/table1", "lst/figure7", "hst/vtab_in21k"} <= {s.name for s in evidence.tables_of("method", "lst")}

"""The format of a table's file, and every table that is shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from transfer_run.cli.table import show
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.tables import spec as specs
from transfer_run.tables.spec import TableSpec, names, read

TABLES = names()


def test_a_column_stands_for_several(small: TableSpec) -> None:
    assert [column.name for column in small.columns] == ["memory", "counted", "infer", "a", "b", "mean", "speed"]
    assert small.rows[0].paper == {"memory": 20.0, "a": 90.0, "b": 80.0, "speed": 3}
    assert small.rows[3].words is None


def test_words_of_a_cell(small: TableSpec) -> None:
    lora, memory = small.rows[1], small.columns[0]
    paper, smoke = (small.cell_words(lora, memory, scale) for scale in ("paper", "smoke"))
    assert paper[-2:] == ["method=lora", "method.rank=2"]
    assert "dataset.batch_size=4" in smoke
    assert not any(word.startswith("method.rank") for word in smoke)
    assert "backbone.weights=random" in smoke


def test_the_last_word_of_a_key_wins(content: dict[str, Any]) -> None:
    content["rows"][0] |= {"words": "method=full dataset=digits seed=3", "cells": {"a": "seed=4"}}
    table = specs._spec("toy/small", content)
    words = {column.name: table.cell_words(table.rows[0], column, "paper") for column in table.columns}
    assert "seed=3" in words["b"]
    assert "seed=4" in words["a"]
    assert "seed=3" not in words["a"]
    assert sum(word.startswith("dataset=") for word in words["b"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["columns"]["memory"].update({"from": "guess"}), "from is one of"),
        (lambda c: c["rows"][0]["paper"].update({"acurracy": 1}), "no column acurracy"),
        (lambda c: c["rows"][0]["paper"].update({"{}": [1.0]}), "1 figures for the 2 columns"),
        (lambda c: c["rows"].append({"row": "full"}), "two rows are called full"),
        (lambda c: c["columns"]["mean"].update({"of": ["a", "z"]}), "no column z"),
        (lambda c: c["picture"].update({"y": "z"}), "picture: no column z"),
        (lambda c: c.update({"statistic": "mode"}), "statistic is one of"),
    ],
)
def test_mistakes_in_a_file_are_told(content: dict[str, Any], change: Any, message: str) -> None:
    change(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        specs._spec("toy/small", content)


def test_an_unknown_table_has_near_ones() -> None:
    with pytest.raises(UserError, match="no table 'lst/table11'") as caught:
        read("lst/table11")
    assert "lst/table1" in caught.value.nearest


@pytest.mark.parametrize("name", TABLES)
def test_a_shipped_table_is_well_formed(name: str) -> None:
    table = read(name)
    assert table.title
    assert not any(";" in row.note for row in table.rows), "notes of a cell are joined with semicolons"
    assert specs.file_of(name).read_text(encoding="utf-8").startswith("# ")
    for column in table.columns:
        wants_value = column.origin == "plan" or (
            column.origin == "run" and any(row.words is not None for row in table.rows)
        )
        assert column.value or not wants_value, f"{column.name}: nothing is asked"
    for row in table.rows:
        assert all(figure is None or isinstance(figure, int | float) for figure in row.paper.values())


OF_THE_FIVE = {
    "lst": "figure7 supp_table1 table1 table2 table3 trainable_params user_measurement",
    "unipt": "full_tuning_readmes glue_t5 image_text_retrieval question_answering referring_expressions results_index "
             "trainable_params video_text_retrieval",
    "sherl": "glue_t5 image_text_retrieval question_answering referring_expressions trainable_params "
             "video_text_retrieval",
    "hst": "ablation ade20k coco_v1 coco_v3 efficiency fgvc_in21k mae params saved_activations vtab_in21k vtab_mean_v3",
    "vqt": "demo_hparams params saved_activations table1",
}  # fmt: skip
"""Every table of the five methods' specs."""
SPECS = Path(__file__).parents[3] / "shared" / "methods"


@pytest.mark.parametrize("key", OF_THE_FIVE)
def test_the_five_methods_have_their_tables(key: str) -> None:
    assert [name.partition("/")[2] for name in TABLES if name.startswith(f"{key}/")] == OF_THE_FIVE[key].split()
    assert "side_tuning_family/published" in TABLES


@pytest.mark.skipif(not SPECS.is_dir(), reason="the specs of the methods are not beside the repository")
@pytest.mark.parametrize("key", OF_THE_FIVE)
def test_the_list_is_the_specs(key: str) -> None:
    content = yaml.safe_load((SPECS / f"{key}.yaml").read_text(encoding="utf-8"))
    assert sorted(table["id"] for table in content["tables"]) == OF_THE_FIVE[key].split()


def refused(words: list[str]) -> str:
    """Why these words are no run; empty where they are one."""
    try:
        compose(words)
    except UserError as error:
        return str(error)
    return ""


SOURCE_LACKS_DATA = re.compile(
    r"^dataset\.path=\S+ does not exist\.\n  where:   (backbone\.weights|sources\.\w+|stages|dataset\.tasks\[0\]): "
    r"|^method=\w+ works without data only where .*sources"  # the models that a paper merged
)


@pytest.mark.long
@pytest.mark.parametrize("name", TABLES)
def test_the_words_of_a_shipped_table_are_valid(name: str) -> None:
    """At both scales; rows of methods that are not installed are left to their notes, and a source at the paper's
    scale, or its data (`dataset.path=imagenet`), is the user's to name."""
    table, methods = read(name), set(registry.names("method"))
    paper: set[tuple[str, ...]] = set()
    smoke: set[tuple[str, ...]] = set()
    for row in table.rows:
        method = next((word.partition("=")[2] for word in row.words or () if word.startswith("method=")), "")
        if row.words is None or (method and method not in methods):
            continue
        asked = {column.words if column.origin == "plan" else "run": column for column in table.columns
                 if column.origin in ("plan", "run")}  # fmt: skip
        for column in asked.values():
            paper.add(tuple(table.cell_words(row, column, "paper")))
            smoke |= {tuple(table.cell_words(row, column, "smoke"))} if table.smoke else set()
    refusals = [refusal for words in sorted(paper) if (refusal := refused(list(words)))]
    if name == "side_tuning_family/today":  # all methods on all families: it says where one is not defined
        assert all("is not defined on" in refusal for refusal in refusals)
    else:
        assert not [refusal for refusal in refusals if not SOURCE_LACKS_DATA.search(refusal)]
    for words in sorted(smoke):
        compose(list(words))


OWN_TABLE = """
title: What one prediction needs
words: backbone=vit_tiny backbone.weights=random dataset=digits
columns:
  peak: {unit: MiB, from: plan, value: inference.peak, divide: 1048576}
rows:
  - {row: mine, words: method=plainest}
  - {row: full, words: method=full}
"""
OWN_METHOD = """# @package _global_
method:
  name: plainest
  about: {title: T, target: plainest.Plainest, family: tuning, shape: tune, backbones: [vit]}
"""


def test_a_table_of_ones_own_with_a_method_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--config-dir`: table, method and module lie beside each other, and inference is planned from words."""
    own = tmp_path / "my, own"
    (own / "table" / "mine").mkdir(parents=True)
    (own / "method").mkdir()
    (own / "table" / "mine" / "infer.yaml").write_text(OWN_TABLE, encoding="utf-8")
    (own / "method" / "plainest.yaml").write_text(OWN_METHOD, encoding="utf-8")
    code = "from transfer_run.methods.tuning.full import Full\n\n\nclass Plainest(Full):\n    pass\n"
    (own / "plainest.py").write_text(code, encoding="utf-8")
    show(["mine/infer", "--config-dir", str(own), "--format", "json", "--out", str(tmp_path / "out")])
    mine, full = json.loads(capsys.readouterr().out)["cells"]
    assert mine["note"] == full["note"] == ""
    assert mine["ours"] == full["ours"] > 1
    with pytest.raises(UserError, match="no table 'mine/infer'"):
        show(["mine/infer"])
    with pytest.raises(UserError, match="does not exist"):
        show(["mine/infer", "--config-dir", str(tmp_path / "none")])

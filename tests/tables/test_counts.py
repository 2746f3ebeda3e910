"""What tables count: operations against a hand count, rows of embedded and of local data."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.tables.counts import operations, rows
from transfer_run.tables.figures import ask
from transfer_run.tables.spec import names, read

KEYS = ("ties", "fisher_merging", "tmi", "double_finetuning", "distiller", "dp4tl", "zscl")


def test_operations_of_a_transformer_are_those_of_its_matrix_products() -> None:
    found = operations(
        compose(["method=full", "backbone=bert_tiny", "dataset=python_docs", "dataset.max_source_length=32"])
    )
    cfg = compose(["backbone=bert_tiny", "dataset=python_docs"])
    shape, tokens = cfg.config["backbone"]["architecture"], 32
    width, wide = shape["hidden_size"], shape["intermediate_size"]
    block = 2 * tokens * (4 * width * width + 2 * width * wide) + 2 * 2 * tokens * tokens * width
    head = 2 * width * int(cfg.config["dataset"]["num_labels"])
    pooler = 2 * width * width
    assert found["forward"] == pytest.approx(shape["num_hidden_layers"] * block + pooler + head, rel=0.01)
    assert found["training"] == pytest.approx(3 * found["forward"], rel=0.02)
    backward = found["training"] - found["forward"]
    assert found["fisher"] == found["forward"] + int(cfg.config["dataset"]["num_labels"]) * backward


def test_rows_of_embedded_and_of_local_data(tmp_path: Path) -> None:
    digits = rows(compose(["backbone=vit_tiny", "dataset=digits", "dataset.classes=[0,1,2,3,4,5,6,7,8,9]"]))
    assert (digits["all"], digits["classes"]) == (1797, 10)
    assert digits["learned"] + digits["test"] == 1797
    lines = [f"{1 + i % 2},question {i},rewritten {i} {label},{label}" for i in range(30) for label in (1, 0)]
    (tmp_path / "mqp.csv").write_text("\n".join(lines), encoding="utf-8")
    words = ("method=double_finetuning", "backbone=bert_tiny", "dataset=mqp", f"dataset.path={tmp_path / 'mqp.csv'}")
    pairs = rows(compose(list(words)))
    assert (pairs["all"], pairs["of"]) == (60, {"different": 30, "similar": 30})
    assert pairs["distinct"] == {"sentence1": 30, "sentence2": 60, "texts": 90}
    assert ask(words, "rows.of.similar", "run")[0] == 30


@pytest.mark.parametrize("name", [name for name in names() if name.split("/")[0] in KEYS])
def test_a_row_that_nothing_runs_says_why(name: str) -> None:
    spec = read(name)
    assert all(row.note for row in spec.rows if row.words is None)

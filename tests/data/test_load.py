"""A data set's file against what its class reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conftest import nodes
from transfer_run.data.load import batch_spec, build_data, build_task
from transfer_run.errors import UserError


@pytest.mark.parametrize(("key", "near"), [("text_columns", "text_column"), ("label_column", "label_col")])
def test_a_key_that_the_file_lacks_is_named(key: str, near: str, tmp_path: Path) -> None:
    """A file of the user's own, which writes the key otherwise."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "a,x\nb,y\n" * 10)
    node, model = nodes("dataset=text_files", "backbone=bert_tiny")
    node = {near if name == key else name: value for name, value in node.items()} | {"path": str(tmp_path / "rows.csv")}
    with pytest.raises(UserError, match=f"reads dataset.{key}") as error:
        build_data(node, model, 0).setup()
    assert near in error.value.nearest


def test_a_key_that_the_plan_misses_is_named() -> None:
    node, model = nodes("dataset=image_folder", "backbone=vit_tiny", "dataset.num_labels=2")
    del node["metrics"]
    with pytest.raises(UserError, match=r"reads dataset\.metrics"):
        build_task(node, model)
    text, bert = nodes("dataset=text_files", "backbone=bert_tiny", "dataset.num_labels=2")
    del text["max_source_length"]
    with pytest.raises(UserError, match=r"reads dataset\.max_source_length"):
        batch_spec(text, bert, 4)

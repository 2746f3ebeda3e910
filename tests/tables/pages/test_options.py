"""Keys with the comments of their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transfer_run.experiment.config import registry
from transfer_run.experiment.config.registry import Entry
from transfer_run.tables.pages.options import Option, comments, options, written

TEXT = """\
# @package _global_
# Head.
method:                         # of the group
  a: 1                          # beside it
  b: "x # no comment"           # one,
                                # and more of it
  # of c, not of b
  c: {k: 1, s: 0}   # of both
  d:
    e: null         # deep
  f: [1,
    2]              # at the end
  g: it's           # an apostrophe
  h: 3
optimizer:
  lr: 1.0e-3
"""


def test_comments_by_key() -> None:
    assert comments(TEXT) == {
        "method": "of the group",
        "method.a": "beside it",
        "method.b": "one, and more of it",
        "method.c": "of both",
        "method.d.e": "deep",
        "method.f": "at the end",
        "method.g": "an apostrophe",
    }


def test_options_name_keys_defaults_comments_and_types(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    about = "  about:\n    options: {a: int >= 1, c.k: 'int?', c.s: 'int?', h: [1, 3]}\n"
    text = TEXT.replace("method:                         # of the group\n", "method:\n  name: own\n" + about)
    (tmp_path / "method" / "own.yaml").write_text(text, encoding="utf-8")
    own, others = options(
        registry.entry("method", "own", [tmp_path]), "method", registry.built_on("method", "own", [tmp_path])
    )
    assert own == [
        Option("method.a", "1", "beside it [int >= 1]"),
        Option("method.b", "x # no comment", "one, and more of it"),
        Option("method.c", "{k: 1, s: 0}", "of both [k, s: int?]"),
        Option("method.d.e", "null", "deep"),
        Option("method.f", "[1, 2]", "at the end"),
        Option("method.g", "it's", "an apostrophe"),
        Option("method.h", "3", "[1 | 3]"),
    ]
    assert others == [Option("optimizer.lr", "0.001", "")]


def test_a_file_that_builds_on_another_has_that_ones_keys_and_comments() -> None:
    files = registry.built_on("dataset", "glue/rte")
    assert [file.name for file in files] == ["_glue.yaml", "rte.yaml"]
    own, others = options(registry.entry("dataset", "glue/rte"), "dataset", files)
    told = {option.key: option for option in own}
    assert told["dataset.splits"].says.startswith("lst: the LST paper's, every test row has a label")
    assert told["dataset.text_columns"].default == "[sentence1, sentence2]"
    assert Option("optimizer.warmup", "500", "") in others


@pytest.mark.parametrize("group", ["method", "dataset", "backbone"])
def test_no_key_of_a_shipped_file_is_missed(group: str) -> None:
    """Every own key of every choice is told once; a comment that stands beside a key is told with it."""
    for entry in registry.entries(group):
        files = registry.built_on(group, entry.name)
        own, _ = options(entry, group, files)
        top = [option.key.split(".")[1] for option in own]
        assert set(top) == set(entry.content[group]) - {"name", "about"}, entry.name
        told = " ".join(option.says for option in own)
        for key, comment in comments(files[-1].read_text(encoding="utf-8")).items():
            if key.startswith(f"{group}.") and ".about" not in key and f"{group}.name" != key:
                assert comment in told, (entry.name, key)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-3, "0.001"),
        ([1, None], "[1, null]"),
        ({"a": [2.0]}, "{a: [2]}"),
        ("${by_data:3.0e-3,{images: 1.0e-2}}", "3.0e-3 (on images 1.0e-2)"),
        ("${dataset.task}", "${dataset.task}"),
    ],
)
def test_values_as_a_command_line_has_them(value: Any, text: str) -> None:
    assert written(value) == text


def test_an_entry_without_a_node_has_no_options(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("", encoding="utf-8")
    assert options(Entry("x", "", "", file, {}), "method", [file]) == ([], [])

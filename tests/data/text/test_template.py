"""A prompt is columns in braces and text: what else it may hold is refused by the words alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_run.data.text.lengths import describe_text
from transfer_run.data.text.template import filled
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "rows.csv").write_text("question,a.b,c,label\nwho,1,0,0\n")
    columns = "dataset.text_columns=[question,a.b]"
    return [
        "backbone=t5_tiny",
        "dataset=text_files",
        f"dataset.path={tmp_path / 'rows.csv'}",
        columns,
        "dataset.num_labels=2",
    ]


def asked(words: list[str]) -> str:
    config = compose(words).config
    describe_text(config["dataset"], config["backbone"])
    return str(config["dataset"]["prompt"])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("q: {question}", "q: Who {x}?"),
        ("{question}{a.b}", "Who {x}?7"),
        ("{{{question}}}", "{Who {x}?}"),
        ("{a.b} and {a.b} 100 %", "7 and 7 100 %"),
    ],
)
def test_a_row_is_filled_in_as_it_stands(template: str, text: str, words: list[str]) -> None:
    """A column may be called like a path, braces of the data are data."""
    assert filled(template, {"question": "Who {x}?", "a.b": 7, "c": 0}) == text
    assert asked([*words, f"dataset.prompt='{template}'"]) == template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question.text}", "names 'question.text'"),
        ("{question[0]}", r"names 'question\[0\]'"),
        ("{question!r}", "names 'question!r'"),
        ("{question:>90}", "names 'question:>90'"),
        ("{qestion}", "names 'qestion'"),
        ("{}", "names ''"),
        ("{0}", "names '0'"),
        ("{c}", "names 'c'"),
        ("answer this", "names no column"),
        ("{{question}}", "names no column"),
        ("{question", "cannot be read"),
        ("question}", "cannot be read"),
    ],
)
def test_anything_else_is_refused(template: str, message: str, words: list[str]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        asked([*words, f"dataset.prompt='{template}'"])
    assert "dataset.prompt" in str(caught.value.where)


def test_an_encoder_reads_columns_as_a_pair_and_no_prompt(words: list[str]) -> None:
    assert asked([*words, "backbone=bert_tiny", "dataset.prompt='{x}'"]) == "{x}"

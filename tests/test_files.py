"""Files that are written whole, and hold what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.files import write_json


def test_json_has_no_word_for_what_is_no_finite_number(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [math.inf, 1.5, (-math.inf,)], "c": {"d": math.nan}})
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(written, parse_constant=lambda word: pytest.fail(word)) == {
        "a": None, "b": [None, 1.5, [None]], "c": {"d": None},
    }  # fmt: skip


def test_a_value_of_a_whole_page_is_cut_in_a_message() -> None:
    error = UserError("'" + "word " * 30_000 + "' is no label.", where="t.csv, row 3", remedy="correct the row")
    assert len(str(error)) < 3000
    assert "is no label." in str(error)
    assert "t.csv, row 3" in str(error)

"""The list of mistakes in core lines stays true: each line is where it says, each test exists (`make mutations` runs
them)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from mutations import Mutation, mutations  # noqa: E402

LISTED = mutations()


@pytest.mark.parametrize("mutation", LISTED, ids=lambda mutation: mutation.name)
def test_a_mistake_can_still_be_made_and_has_its_tests(mutation: Mutation) -> None:
    path, changed = mutation.applied(ROOT / "src" / "transfer_run")
    assert changed != path.read_text(encoding="utf-8")
    compile(changed, str(path), "exec")
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


def test_there_are_many() -> None:
    assert len({mutation.name for mutation in LISTED}) == len(LISTED) >= 25


def test_a_line_that_is_not_there_is_told() -> None:
    lost = Mutation("lost", "methods/base.py Method.loss", "no such line", "", [])
    with pytest.raises(LookupError, match="0 such lines"):
        lost.applied(ROOT / "src" / "transfer_run")

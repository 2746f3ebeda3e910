"""Each fault that was found in use has tests of its right value: the list (rows.yaml) names tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[1]
ROWS = {
    f"{part}: {row}": tests
    for part, rows in yaml.safe_load((Path(__file__).parent / "rows.yaml").read_text()).items()
    for row, tests in rows.items()
}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_of_a_fault_are_there(row: str) -> None:
    missing = []
    for named in ROWS[row]:
        file, _, name = named.partition("::")
        if not (TESTS / file).is_file() or f"test_{name}" not in names_in(file):
            missing.append(named)
    assert ROWS[row]
    assert not missing


COUNTS = {"A": 9, "B": 7, "E": 16, "S": 12, "P": 23}
"""Faults that were found, numbered from 1 in each part."""


def test_every_fault_that_was_found_has_a_row() -> None:
    named = {word for row in ROWS for word in re.findall(r"(?:[ABEPS][0-9]+|[CD])(?= )", row.partition(": ")[2])}
    found = {f"{part}{number}" for part, count in COUNTS.items() for number in range(1, count + 1)} | {"C", "D"}
    assert found - named == set()
    assert named - found == set()

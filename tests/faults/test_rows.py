"""Each fault that was found in use has tests of its right value: the list (rows.yaml) names tests that there are."""

from __future__ import annotations

import ast
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

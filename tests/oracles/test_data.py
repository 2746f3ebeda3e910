"""A module of oracle tests without a file would pass by running nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = [path for path in sorted(HERE.glob("test_*.py")) if path != Path(__file__)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_module_has_a_file(module: Path) -> None:
    pattern = module.read_text(encoding="utf-8").partition('ORACLE = "')[2].partition('"')[0]
    assert pattern.endswith(".npz")
    assert list((HERE / "data").glob(pattern))

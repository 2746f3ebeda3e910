"""The budget of a method's own tests."""

from __future__ import annotations

from collections import Counter

from tests.conftest import SECONDS, over_budget


def test_a_file_of_a_method_has_so_many_seconds() -> None:
    spent = Counter({"tests/methods/a.py": SECONDS + 1.0, "tests/methods/b.py": SECONDS - 1.0, "tests/cli/c.py": 99.0})
    assert [line.split()[0] for line in over_budget(spent, 1)] == ["tests/methods/a.py"]
    assert over_budget(spent, 2) == []

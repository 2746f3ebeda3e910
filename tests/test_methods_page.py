"""docs/methods.md says nothing that the registry does not; a method that came since the release is not on it yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_line_of_the_page_is_the_registrys() -> None:
    check = [sys.executable, ROOT / "scripts" / "write_docs.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"python scripts/write_docs.py writes these lines of docs/methods.md anew: {done.stdout}"
    )
    assert len((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()) > 60

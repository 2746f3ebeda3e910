"""docs/methods.md is what the registry says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_that_of_the_registry() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "write_docs.py", "--check"], capture_output=True)
    assert done.returncode == 0, "docs/methods.md is out of date: python scripts/write_docs.py"

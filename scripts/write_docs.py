"""Writes docs/methods.md from the registry: one line a method. `--check` only compares (a test does that)."""

from __future__ import annotations

import sys
from pathlib import Path

from transfer_run.backbones.declared import families, takes
from transfer_run.experiment.config.registry import entries

TARGET = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
HEAD = """# Methods

Written by `python scripts/write_docs.py` from `configs/method/`; `transfer-list methods` shows the same.

| method | family | shape | works on | paper |
|---|---|---|---|---|
"""


def text() -> str:
    """The page."""
    lines = []
    for entry in sorted(entries("method", ()), key=lambda e: (e.family, e.name)):
        about = entry.content["method"]["about"]
        paper = f"[{about['title']}](https://arxiv.org/abs/{about['arxiv']})" if about.get("arxiv") else about["title"]
        fitting = [name for name, family in families().items() if takes(about, family)]
        works = ", ".join(fitting) if len(fitting) < len(families()) else "any"
        lines.append(f"| `{entry.name}` | {entry.family} | {about['shape']} | {works} | {paper} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with `--check` say whether it is as it should be."""
    if "--check" in sys.argv:
        current = TARGET.read_text(encoding="utf-8") if TARGET.is_file() else ""
        return 0 if current == text() else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

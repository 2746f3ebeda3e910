"""Writes docs/methods.md from the registry: one line a method; a release does that, a new method need not.

`--check` compares the lines that stand there with the registry (a test does that).
"""

from __future__ import annotations

import sys
from pathlib import Path

from transfer_run.backbones.declared import families, takes
from transfer_run.experiment.config.registry import Entry, entries

TARGET = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
HEAD = """# Methods

Written at a release by `python scripts/write_docs.py` from `configs/method/`; `transfer-list methods` shows the same.

| method | family | shape | works on | paper |
|---|---|---|---|---|
"""


def line(entry: Entry) -> str:
    """One method: its key, family, shape, backbones and paper."""
    about = entry.content["method"]["about"]
    paper = f"[{about['title']}](https://arxiv.org/abs/{about['arxiv']})" if about.get("arxiv") else about["title"]
    fitting = [name for name, family in families().items() if takes(about, family)]
    works = ", ".join(fitting) if len(fitting) < len(families()) else "any"
    return f"| `{entry.name}` | {entry.family} | {about['shape']} | {works} | {paper} |"


def text() -> str:
    """The page."""
    return HEAD + "\n".join(line(entry) for entry in sorted(entries("method"), key=lambda e: (e.family, e.name))) + "\n"


def main() -> int:
    """Write the page, or with `--check` name its lines that are not the registry's."""
    if "--check" in sys.argv:
        current = set(text().splitlines())
        wrong = [each for each in TARGET.read_text(encoding="utf-8").splitlines() if each not in current]
        print("\n".join(wrong))
        return 1 if wrong else 0
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

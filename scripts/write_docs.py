"""Writes docs/methods.md from the registry: one line a method; a release does that, a new method need not.

`--check` compares the lines that stand there with the registry (a test does that). `--pages` writes the page of every
method, data set and backbone below docs/ for the web (`make docs`); git ignores them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from transfer_run.backbones.declared import families, serves
from transfer_run.experiment.config.registry import Entry, entries, names
from transfer_run.tables.pages.describe import page
from transfer_run.tables.pages.page import in_markdown

TARGET = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
HEAD = """# Methods

Written at a release by `python scripts/write_docs.py` from `configs/method/`. `transfer-list methods NAME` prints the
page of one: what it does, when to choose it, its options, commands, tables and figures; `make docs` writes them all.

| method | family | shape | works on | paper |
|---|---|---|---|---|
"""


def line(entry: Entry) -> str:
    """One method: its key, family, shape, backbones and paper."""
    about = entry.content["method"]["about"]
    paper = f"[{about['title']}](https://arxiv.org/abs/{about['arxiv']})" if about.get("arxiv") else about["title"]
    fitting = [name for name, family in families().items() if serves(about, family)]
    works = ", ".join(fitting) if len(fitting) < len(families()) else "any"
    return f"| `{entry.name}` | {entry.family} | {about['shape']} | {works} | {paper} |"


def text() -> str:
    """The page."""
    return HEAD + "\n".join(line(entry) for entry in sorted(entries("method"), key=lambda e: (e.family, e.name))) + "\n"


def write_pages(root: Path) -> int:
    """A file for every method, data set and backbone, in a folder a kind; returns how many."""
    kinds = {"methods": "method", "datasets": "dataset", "backbones": "backbone"}
    count = 0
    for kind, group in kinds.items():
        shutil.rmtree(root / kind, ignore_errors=True)
        for name in names(group):
            path = root / kind / f"{name}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(in_markdown(page(group, name)), encoding="utf-8")
            count += 1
    return count


def main() -> int:
    """Write the page, with `--check` name its lines that are not the registry's, with `--pages` write all pages."""
    if "--pages" in sys.argv:
        print(f"{write_pages(TARGET.parent)} pages below {TARGET.parent}")
        return 0
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

"""Makes mistakes in core lines, one after the other, and runs the tests that must notice them.

    python scripts/mutations.py                 all of tests/mutations.yaml; exit code 1 if one is missed
    python scripts/mutations.py gate merging    those whose name or file has one of these words
    python scripts/mutations.py --list          which there are, and whether each line is still there

Works in a copy of the tree; nothing of it is changed.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutations.yaml"
PARTS = ("src", "configs", "tests", "scripts", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
NOTHING_RAN = (2, 3, 4, 5)
"""pytest's exit codes for a test that could not be collected or does not exist: no mistake was noticed by it."""


@dataclass(frozen=True)
class Mutation:
    """A mistake: `line` of the function `where` names (FILE FUNCTION) becomes another one, and `tests` must fail."""

    name: str
    where: str
    line: str
    becomes: str
    tests: list[str]

    def applied(self, source: Path) -> tuple[Path, str]:
        """The file that is changed, and its changed text.

        Raises:
            LookupError: the line is not there, or more than once.
        """
        file, function = self.where.split()
        path = source / file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = text.splitlines(keepends=True)
        first, last = _span(ast.parse(text), function)
        found = [number for number in range(first, last) if lines[number].strip() == self.line]
        if len(found) != 1:
            raise LookupError(f"{self.name}: {len(found)} such lines in {self.where}: {self.line}")
        lines[found[0]] = lines[found[0]].replace(self.line, self.becomes)
        return path, "".join(lines)


def _span(tree: ast.AST, function: str) -> tuple[int, int]:
    """First and last line of `name` or `Class.name`, counted from 0; an empty span if it is not there."""
    for name in function.split("."):
        inside = (n for n in ast.iter_child_nodes(tree) if getattr(n, "name", None) == name)
        tree = next(inside, ast.Module([], []))
    return getattr(tree, "lineno", 1) - 1, getattr(tree, "end_lineno", 0)


def mutations(*words: str, path: Path = LIST) -> list[Mutation]:
    """Those of the list whose name or file has one of the words; without words all."""
    listed = [Mutation(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    return [m for m in listed if not words or any(word in f"{m.name} {m.where}" for word in words)]


def failing(tree: Path, tests: list[str]) -> bool:
    """Does one of the tests fail in this tree?

    Raises:
        LookupError: one of them is not there, or cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode in NOTHING_RAN:
        raise LookupError(f"{' '.join(tests)}: {done.stdout[-600:]}{done.stderr[-300:]}")
    return done.returncode != 0


def noticed(mutation: Mutation, tree: Path) -> bool:
    """Do its tests fail with the mistake in the tree? The tree is afterwards as before."""
    path, changed = mutation.applied(tree / "src" / "transfer_run")
    before = path.read_text(encoding="utf-8")
    path.write_text(changed, encoding="utf-8")
    try:
        return failing(tree, mutation.tests)
    finally:
        path.write_text(before, encoding="utf-8")


def main() -> int:
    """Print a line for each, and how many were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    chosen, outcomes = mutations(*asked.words), []
    if not chosen:
        print(f"no mistake has {' or '.join(asked.words)} in its name or file", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in PARTS if not asked.list else ():
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, tree / part)
        if not asked.list and failing(tree, sorted({test for mutation in chosen for test in mutation.tests})):
            print("their tests fail without any mistake", file=sys.stderr)
            return 1
        for mutation in chosen:
            try:
                if asked.list:
                    mutation.applied(ROOT / "src" / "transfer_run")
                outcomes.append("there" if asked.list else "caught" if noticed(mutation, tree) else "MISSED")
            except LookupError as error:
                outcomes.append("LOST")
                print(error, file=sys.stderr)
            print(f"{outcomes[-1]:7}{mutation.name}  ({mutation.where})", flush=True)
    bad = outcomes.count("MISSED") + outcomes.count("LOST")
    print(f"{len(outcomes)} mistakes, {bad} missed")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())

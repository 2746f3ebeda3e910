"""The centre knows no paper: no method's or data set's name, and no key of theirs, is written in its rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import transfer_run
from transfer_run.experiment.config import registry

SOURCE = Path(transfer_run.__file__).parent
ROOMS = ("experiment", "tables", "cli", "memory")
COMMON = 3
"""As many families of methods, or suites of data sets, have a key before it is a word of the house (`path`, `hub`)."""

ALLOWED = {
    "none": "the word for nothing, and the data set of runs without data",
    "identity": "a run's", "weights": "a backbone's", "augment": "every image data set's", "taps": "a key of `cache`",
    "dtype": "a key of `cache`, and a tensor's", "task": "of a saved model (model.json)",
    "combine": "a shape", "runs": "the folder of all runs",
    "base": "a folder of an export", "attention": "what a backbone attends by", "classes": "a count of labels",
    "normalize": "a function's", "fisher": "operations.fisher of a table: a backward for each label",
    "lr": "a key of `optimizer`",
    "length": "a group of a pattern", "steps": "of a result", "bias": "a tensor's",
    "scale": "of a table", "budget": "plan.budget, of memory",
}  # fmt: skip
"""Words that a paper uses too, and what they mean here."""


def words(room: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every text in a room's files that stands alone: docstrings left out."""
    for path in sorted((SOURCE / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
        told = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                yield f"{path.relative_to(SOURCE)}, line {node.lineno}", node.value


def of_papers() -> set[str]:
    """Names and families of methods, names of data sets, and the keys that few of them have."""
    found, keys = set[str](), dict[str, set[str]]()
    for group in ("method", "dataset"):
        for entry in registry.entries(group):
            found |= {entry.name, *([entry.family] if group == "method" else [])}
            for key in entry.content[group]:
                owner = entry.family if group == "method" else entry.name.partition("/")[0]
                keys.setdefault(key, set()).add(owner)
    return found | {key for key, owners in keys.items() if len(owners) < COMMON}


def test_no_name_and_no_key_of_a_paper_stands_in_the_centre() -> None:
    known = of_papers()
    assert {"lst", "digits", "side_tuning", "pool", "extra_width", "chunk_bytes", "feature_width"} <= known
    found = [f"{place}: {text!r}" for room in ROOMS for place, text in words(room) if text in known - ALLOWED.keys()]
    assert found == []


def test_every_exception_is_one() -> None:
    written = {text for room in ROOMS for _, text in words(room)}
    assert ALLOWED.keys() <= written & of_papers() | {"none"}

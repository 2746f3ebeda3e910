"""Docstrings of Python's own library, read from its source without importing it: real English text on every machine.

All that depends on is Python's version: modules are named here, read in a fixed order, and ranked by a hash of their
names, so that two machines with the same minor version have (nearly) the same rows in the same splits.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transfer_run.errors import UserError

MIN_LENGTH = 40
"""Characters; shorter docstrings ("Return self.") tell nothing."""


@dataclass(frozen=True)
class Docstring:
    """One documented function, class or module.

    Attributes:
        name: `asyncio/base_events.py:BaseEventLoop.call_soon`.
        text: the place within the package, the call and the docstring on one line,
            `base_events.BaseEventLoop.call_soon(self, callback): Arrange for ...`.
    """

    name: str
    text: str

    @property
    def module(self) -> str:
        """The top-level module or package."""
        return self.name.partition(":")[0].partition("/")[0].removesuffix(".py")

    @property
    def rank(self) -> str:
        """A fixed random order."""
        return hashlib.sha256(self.name.encode()).hexdigest()


@functools.cache
def docstrings(modules: tuple[str, ...]) -> tuple[Docstring, ...]:
    """Documented objects of modules and packages, in the order of their files; repeated docstrings only once.

    Modules that this Python does not have are passed over.

    Raises:
        UserError: Python came without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "inspect.py").is_file():
        raise UserError(
            "Python's library is here without its source, so its documentation cannot be read.",
            where=str(root),
            remedy="use a Python that was installed with its .py files, or dataset=text_files dataset.path=...",
        )
    found: dict[str, Docstring] = {}
    for file in _files(root, modules):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise UserError(f"A file of Python's library cannot be read: {error}", where=str(file)) from error
        path = file.relative_to(root).as_posix()
        inner = path.partition("/")[2].removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")
        for name, arguments, text in _documented(tree, ""):
            words = " ".join(text.split())
            if len(words) >= MIN_LENGTH and words not in found:
                call = ".".join(part for part in (inner, name) if part) + arguments
                found[words] = Docstring(f"{path}:{name}", f"{call}: {words}" if call else words)
    return tuple(found.values())


def _files(root: Path, modules: Iterable[str]) -> Iterator[Path]:
    for name in modules:
        folder, file = root / name, root / f"{name}.py"
        if folder.is_dir():
            yield from sorted(p for p in folder.rglob("*.py") if not {"test", "tests"} & set(p.parts))
        elif file.is_file():
            yield file


def _documented(node: ast.AST, outer: str) -> Iterator[tuple[str, str, str]]:
    """(qualified name, argument names, docstring) of a node and of what is defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            arguments = getattr(node, "args", None)
            yield outer, f"({', '.join(a.arg for a in arguments.args)})" if arguments else "", text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{outer}.{child.name}" if outer else child.name)


def topics() -> list[str]:
    """The chapters of the language reference that `help()` shows, each on one line."""
    from pydoc_data.topics import topics as chapters

    return [" ".join(chapters[name].split()) for name in sorted(chapters)]

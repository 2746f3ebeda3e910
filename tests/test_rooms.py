"""The house, read from the source: which way imports run, and what a file's place says about it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE, CONFIGS = ROOT / "src" / "transfer_run", ROOT / "configs"
FLOORS = (
    {"cli"},
    {"tables"},
    {"sweeps"},
    {"experiment"},
    {"methods"},
    {"data", "backbones", "memory", "hardware"},
    {"errors", "files", "run_folder", "signals", "targets", "task", "words"},
)
"""The rooms from the top of the house to its ground; each may import those below it."""
SHARED = "base"
"""The file of a family of methods that holds what its methods have in common."""

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name below it; `methods.tuning.lora`, the package itself as ``."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Dotted names below the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("transfer_run.") for name in names if name.startswith("transfer_run."))


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Which file imports which: the longest part of an imported name that is a file."""
    files = modules()
    found: Graph = {name: set() for name in files}
    for name, path in files.items():
        for target in imported(path):
            owner = target if target in files else target.rpartition(".")[0]
            assert owner in files, f"{path} imports {target}, which is nowhere"
            if owner not in ("", name):
                found[name].add(owner)
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach one another; one name alone is none."""

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            for name in graph.get(left.pop(), set()) - seen:
                seen.add(name)
                left.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    found = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in graph if a in reach[a]}
    return [list(names) for names in sorted(found)]


def within(graph: Graph, folder: str) -> Graph:
    """The graph of what stands directly in a folder: its files and the rooms below it."""
    start = f"{folder}." if folder else ""
    found: Graph = {}
    for name, targets in graph.items():
        if name and name.startswith(start):
            own = name.removeprefix(start).split(".")[0]
            others = {other.removeprefix(start).split(".")[0] for other in targets if other.startswith(start)}
            found.setdefault(own, set()).update(others - {own})
    return found


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]


def test_no_circle_of_files(graph: Graph) -> None:
    assert circles(graph) == []


def test_no_circle_of_folders(graph: Graph) -> None:
    folders = {".".join(path.relative_to(SOURCE).parts) for path in SOURCE.rglob("*") if any(path.glob("*.py"))}
    assert {f: found for f in ("", *sorted(folders)) if (found := circles(within(graph, f)))} == {}


def test_imports_run_downward(graph: Graph) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert set(within(graph, "")) == set(floor), "a room that stands nowhere in the house"
    upward = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if name and floor[name.split(".")[0]] > floor[target.split(".")[0]]
    ]
    assert upward == []


def methods_family(name: str) -> str:
    """The family that a file belongs to; none where it belongs to all methods (`methods/forms`, `methods/base.py`)."""
    parts = name.split(".")
    return parts[1] if parts[0] == "methods" and len(parts) > 2 and parts[1] in FAMILIES else ""


def test_no_family_of_methods_imports_another(graph: Graph) -> None:
    assert len(FAMILIES) > 7
    across = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if methods_family(target) and methods_family(name) != methods_family(target)
    ]
    assert across == []


def keys_by_file(group: str) -> dict[str, set[str]]:
    """The keys of the configs of a group by the module that their `about.target` names.

    The key is the config's path, its name and its folder's name: `glue/rte` stands in `glue.py`.
    """
    found: dict[str, set[str]] = {}
    for path in sorted((CONFIGS / group).rglob("*.yaml")):
        about = _about(yaml.safe_load(path.read_text(encoding="utf-8")), group)
        if target := about.get("target", ""):
            module = target.rpartition(".")[0].removeprefix("transfer_run.")
            found.setdefault(module, set()).update({path.stem.lstrip("_"), path.parent.name})
    return found


def _about(content: Any, group: str) -> Mapping[str, Any]:
    node = content.get(group, content) if isinstance(content, dict) else {}
    return node.get("about") or {}


FAMILIES = {module.split(".")[1] for module in keys_by_file("method")}
"""The families of methods: the folders that configs name."""


@pytest.mark.parametrize(
    ("group", "folder"),
    [*(("method", f"methods/{family}") for family in sorted(FAMILIES)), ("dataset", "data/sets")],
)
def test_a_file_bears_the_key_of_what_it_holds(group: str, folder: str) -> None:
    """Directly in a family a method, in `data/sets` a data set; what several of them share stands one room below."""
    keys, wrong = keys_by_file(group), []
    for path in sorted((SOURCE / folder).glob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if path.stem not in ("__init__", SHARED) and path.stem not in keys.get(module, ()):
            wrong.append(f"{path.name} is the home of {', '.join(sorted(keys.get(module, ['no config'])))}")
    assert wrong == []


def test_a_family_of_backbones_bears_its_key() -> None:
    """Beside `families/KEY.yaml` stands `families/KEY.py`; a class of its own for one kind bears that kind's name."""
    named: dict[str, set[str]] = {}
    for file in (SOURCE / "backbones" / "families").glob("*.yaml"):
        declared = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, target in {file.stem: declared["target"], **declared.get("targets", {})}.items():
            named.setdefault(target.rpartition(".")[0].rpartition(".")[2], set()).add(key)
    files = {path.stem for path in (SOURCE / "backbones" / "families").glob("[a-z]*.py")}
    assert len(files) > 5
    assert {stem for stem in files if stem not in named.get(stem, ())} == set()


def test_the_ground_imports_nothing_heavy() -> None:
    """Words are checked before torch is imported; `task.py` alone names its types."""
    light = {*sys.stdlib_module_names, "yaml"}
    for name in FLOORS[-1]:
        tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
        found = {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found |= {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        assert found <= light | {"transfer_run"} | ({"torch"} if name == "task" else set()), name


LEFT_BY_A_RUN = {
    "config.yaml", "result.json", "run.log", "metrics.csv", "predictions.csv", "checkpoints", "model.json", "heads",
    "tasks.json", "backbone.model.", "backbone.head.",
}  # fmt: skip


def test_what_a_run_leaves_is_spelled_out_once() -> None:
    """The names of a run's files stand in `run_folder.py`; a format that changes is changed there."""
    again = [
        f"{name}, line {node.lineno}: {node.value!r}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in LEFT_BY_A_RUN and name != "run_folder"
    ]
    assert again == []


def test_what_hydra_calls_internal_is_named_in_one_file() -> None:
    naming = [name for name, path in modules().items() if "hydra._internal" in path.read_text(encoding="utf-8")]
    assert naming == ["experiment.config.hydra_parts"]

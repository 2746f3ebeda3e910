"""The keys of a file of the user's own: one that nobody reads would be without effect, and without a word.

Where the file names a class of ours, or is of a group that has none, its keys are those of the packaged files of that
kind. A class of the user's own reads what it likes: there a key is refused that is nearly one which files of the group
have and this one lacks; `about.options` says that it is meant as it stands.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.schema import ABOUT, flatten
from transfer_run.files import read_yaml

ALL_ALIKE = ("hardware", "logger", "profiler")
"""Groups without classes: every file of them may have the same keys."""
OF_CLASSES = ("dataset", "backbone", "optimizer")
MISSPELT = 0.85
"""From which likeness on a key is taken for another one."""


def check_own_file(group: str, name: str, content: Mapping[str, Any], folders: Sequence[Path] = ()) -> None:
    """Compare the keys of a user's own file with those that are read.

    Args:
        content: what the file adds to a config, as `registry.entry` has it.

    Raises:
        UserError: naming a key that nobody reads, and the nearest one that is read.
    """
    files = [file for file in registry.find(group, name, folders) if not file.is_relative_to(registry.config_root())]
    node = content.get(group)
    if not files or group not in (*ALL_ALIKE, *OF_CLASSES) or not isinstance(node, Mapping):
        return
    _refuse_unknown_beside(group, content, files[0])
    read = _keys_of(group, node)
    wrong, near = _misspelt(group, node) if read is None else _superfluous(node, read)
    if wrong is not None:
        more = f"; a key of a class of your own: say its type in {ABOUT}.options" if read is None else ""
        raise UserError(
            f"Nobody reads the key '{group}.{wrong}'.",
            where=f"{files[0]}: {group}.{wrong}",
            nearest=[f"{group}.{key}" for key in near],
            remedy=f"write it as it is read, or leave it out{more}",
        )


def _refuse_unknown_beside(group: str, content: Mapping[str, Any], file: Path) -> None:
    """What the file sets of other nodes must be keys of theirs, as on the command line (`compose.py` looks at those of
    a data set's file)."""
    root = read_yaml(registry.config_root() / "run.yaml")
    others = {key: value for key, value in content.items() if key in root and key not in (group, "hydra")}
    known = {*flatten(root), *(f"{key}.*" for key, value in flatten(root).items() if value == {})}
    wrong = next((key for key in flatten(others) if group != "dataset" and not _is_in(key, known)), None)
    if wrong is not None:
        raise UserError(f"There is no key {wrong!r}.", where=str(file), nearest=nearest_names(wrong, known))


def _keys_of(group: str, node: Mapping[str, Any]) -> set[str] | None:
    """The keys that are read of such a node, `KEY.*` where all below it are; None of a class of the user's own."""
    if group == "optimizer":
        return None  # torch and others have more classes than there are files
    whose = _reader(group, node)
    nodes = [each for each in _packaged(group) if _reader(group, each) == whose]
    return _all_keys(group, nodes) if nodes else None


def _reader(group: str, node: Mapping[str, Any]) -> Any:
    return _about(node).get("target") or (node.get("family") if group == "backbone" else None)


def _about(node: Mapping[str, Any]) -> Mapping[str, Any]:
    about = node.get(ABOUT)
    return about if isinstance(about, Mapping) else {}  # anything else is refused where it is read


def _packaged(group: str) -> list[Mapping[str, Any]]:
    """The nodes of all files of a group that we ship."""
    return [entry.content[group] for entry in registry.entries(group)]


def _all_keys(group: str, nodes: Sequence[Mapping[str, Any]]) -> set[str]:
    root = registry.config_root()
    every = [read_yaml(root / "run.yaml").get(group) or {}, *nodes]
    options = {key.partition(".")[2]: kind for key, kind in read_yaml(root / "options.yaml").items()
               if key.startswith(f"{group}.")}  # fmt: skip
    for node in nodes:
        options |= _about(node).get("options") or {}
    open_below = {key for key, kind in options.items() if kind == "dict"}
    open_below |= {key for node in every for key, value in flatten(node).items() if value == {}}
    return {key for node in every for key in _own(node)} | {f"{key}.*" for key in open_below}


def _own(node: Mapping[str, Any]) -> list[str]:
    """Dotted keys of a node, without what it says of itself."""
    return [key for key in flatten(node) if key.partition(".")[0] != ABOUT]


def _superfluous(node: Mapping[str, Any], read: set[str]) -> tuple[str | None, list[str]]:
    """The first key that is not read, and those that are nearest to it."""
    wrong = next((key for key in _own(node) if not _is_in(key, read)), None)
    return wrong, [] if wrong is None else nearest_names(wrong, [key for key in read if not key.endswith(".*")])


def _misspelt(group: str, node: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The first key that is nearly one which the node lacks, and that one."""
    known, meant = _all_keys(group, _packaged(group)), _about(node).get("options") or {}
    for key in _own(node):
        near = difflib.get_close_matches(key, known - set(_own(node)), 1, MISSPELT)
        if near and key not in meant and not _is_in(key, known):
            return key, near
    return None, []


def _is_in(key: str, known: set[str]) -> bool:
    """Is the key known, or a group that stands for known ones (null or `all`), or below one that is open?"""
    parts = key.split(".")
    above = {".".join(parts[:count]) + ".*" for count in range(1, len(parts) + 1)}
    return key in known or bool(above & known) or any(each.startswith(f"{key}.") for each in known)

"""Where a value of a config comes from: the word or the file that sets it, for messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config import registry, schema

GROUPS = ("optimizer", "hardware", "logger", "profiler", "dataset", "backbone", "method", "experiment")
"""The groups that a run chooses from, in the order in which later ones win."""


def unusable(group: str, choice: Any, folders: Sequence[Path]) -> UserError:
    """The error for a group of which nothing is chosen, or a file that does not set its own name."""
    if choice is None:
        return UserError(f"No {group} is chosen.", where=group, nearest=registry.names(group, folders)[:3])
    header = "_global_" if group in ("method", "dataset") else group
    below = f", and put its keys below `{group}:`" if header == "_global_" else ""
    return UserError(
        f"The file of {group}={choice} does not set {group}.name to {choice!r}.",
        where=str(next(iter(registry.find(group, str(choice), folders)), choice)),
        remedy=f"begin it with the line `# @package {header}`{below}, and name it as its file is named",
    )


def set_by(
    key: str, words: Sequence[str], contents: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path]
) -> str:
    """The word or the file that sets a key, as far as the last one that wins."""
    for word in reversed([word for word in words if word.startswith(("++", "~"))]):
        name = word.lstrip("+~").partition("=")[0]
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
            return word.lstrip("+")
    for choice, content in sorted(contents.items(), key=lambda item: _rank(item[0]), reverse=True):
        if schema.has(content, key):
            group, _, name = choice.partition("=")
            return f"{next(iter(registry.find(group.partition('@')[0], name, folders)), choice)}: {key}"
    return key


def _rank(choice: str) -> int:
    group = choice.partition("=")[0]
    return GROUPS.index(group) if group in GROUPS else -1

"""The keys of a choice with the comments of its file: what `method=lst` may be told, and what it sets elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from transfer_run.experiment.config.registry import Entry
from transfer_run.experiment.config.schema import ABOUT

BY_DATA = re.compile(r"\$\{by_data:(.*?),\{(.*)\}\}")
"""A default that depends on what the data set holds (`experiment/config/by_data.py`)."""
UNSAID = ("name", ABOUT)


@dataclass(frozen=True)
class Option:
    """One key.

    Attributes:
        key: dotted, from the config's root.
        default: as it is written on a command line.
        says: the comment beside it, and what it may be where the comment does not tell.
    """

    key: str
    default: str
    says: str


def options(entry: Entry, group: str, files: Sequence[Path]) -> tuple[list[Option], list[Option]]:
    """The choice's own keys, and those of other groups that it sets.

    Args:
        files: what it is written in, as `registry.built_on` gives them.
    """
    said: dict[str, str] = {}
    for file in files:
        found = comments(
            file.read_text(encoding="utf-8")
        )  # a file may be placed below its group, or tell from the root on
        said |= {key if key.split(".")[0] in entry.content else f"{group}.{key}": text for key, text in found.items()}
    node = entry.content.get(group) or {}
    about = node.get(ABOUT) or {}
    types = {f"{group}.{key}": value for key, value in (about.get("options") or {}).items()}
    own: list[Option] = []
    others: list[Option] = []
    for key, value in leaves(entry.content, said):
        top, _, rest = key.partition(".")
        if not (top == group and rest.partition(".")[0] in UNSAID):
            option = Option(key, written(value), _with_types(said.get(key, ""), _types(key, value != {}, types)))
            (own if top == group else others).append(option)
    return own, others


def leaves(content: Mapping[str, Any], said: Mapping[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values from the root on; a mapping of plain values, of none of which something is said, is one value."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and bool(value)
        apart = nested and any(isinstance(v, Mapping) or f"{path}.{name}" in said for name, v in value.items())
        if nested and (apart or not prefix):
            if prefix and path in said:
                yield path, {}
            yield from leaves(value, said, f"{path}.")
        else:
            yield path, value


def _types(key: str, whole: bool, types: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the key, or parts of it, may be as its file says: by type the parts that it is said of."""
    told: dict[str, list[str]] = {}
    for name, kind in types.items():
        if name == key or (whole and name.startswith(f"{key}.")):
            text = " | ".join(written(choice) for choice in kind) if isinstance(kind, list) else str(kind)
            told.setdefault(text, []).append(name[len(key) + 1 :])
    return told


def _with_types(comment: str, types: Mapping[str, Sequence[str]]) -> str:
    """The comment, and in brackets what it leaves open of the types."""
    told = []
    for text, parts in types.items():
        if text != "any" and not ("|" in text and all(choice in comment for choice in text.split(" | "))):
            told.append(f"{', '.join(parts)}: {text}" if any(parts) else text)
    return " ".join(filter(None, (comment, f"[{'; '.join(told)}]" if told else "")))


def written(value: Any) -> str:
    """A value as a command line has it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(written(each) for each in value)}]"
    if isinstance(value, str) and (found := BY_DATA.fullmatch(value)):
        return f"{found[1]} (on {found[2].replace(': ', ' ')})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def comments(text: str) -> dict[str, str]:
    """The comment beside each key of a YAML text, by dotted key; lines that go on below it with more are part of it."""
    lines = text.splitlines()
    found: dict[str, str] = {}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    keys = list(_keys(root)) if isinstance(root, yaml.MappingNode) else []
    for number, (name, key, value) in enumerate(keys):
        following = keys[number + 1][1].start_mark.line if number + 1 < len(keys) else len(lines)
        first = key.start_mark.line if isinstance(value, yaml.MappingNode) and not value.flow_style else (
            _last_line(value)
        )  # fmt: skip
        parts = [_beside(lines[line]) for line in range(key.start_mark.line, max(first, key.start_mark.line) + 1)]
        for line in lines[max(first, key.start_mark.line) + 1 : following]:
            bare = line.lstrip()
            if not bare.startswith("#") or len(line) - len(bare) <= key.start_mark.column + 1:
                break
            parts.append(bare.lstrip("# "))
        if comment := " ".join(filter(None, parts)):
            found[name] = comment
    return found


def _keys(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
    for key, value in node.value:
        yield f"{prefix}{key.value}", key, value
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _keys(value, f"{prefix}{key.value}.")


def _last_line(value: yaml.Node) -> int:
    mark = value.end_mark
    return int(mark.line - 1 if mark.column == 0 and mark.line > value.start_mark.line else mark.line)


def _beside(line: str) -> str:
    """The comment at the end of a line of YAML: from the first # after a blank that stands in no quotes."""
    quote = ""
    for place, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (place == 0 or not line[place - 1].isalnum()):
            quote = sign
        elif sign == "#" and (place == 0 or line[place - 1] in " \t"):
            return line[place:].lstrip("# ").rstrip()
    return ""

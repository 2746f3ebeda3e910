"""What there is to choose from: the files of the config search path, read without composing anything.

A choice is a file: `method=peft/dora` is `method/peft/dora.yaml` in the packaged configs or in a folder of the
user's. Nothing has to be registered anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import transfer_run
from transfer_run.errors import UserError, nearest_names

KINDS = {
    "methods": "method",
    "backbones": "backbone",
    "datasets": "dataset",
    "hardware": "hardware",
    "tables": "table",
    "experiments": "experiment",
    "optimizers": "optimizer",
    "loggers": "logger",
    "profilers": "profiler",
}
"""What `transfer-list` calls it: the config group that holds it."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """One choice.

    Attributes:
        name: what stands after `=`, its path below the group's folder.
        title: the paper's title, or what the file's first comment says.
        family: a method's family, a backbone's family, a dataset's form; a table's method.
        file: where it is written.
        content: the file as plain data, files it builds on included.
    """

    name: str
    title: str
    family: str
    file: Path
    content: Mapping[str, Any]


def config_root() -> Path:
    """The packaged configs: beside the code in an installed package, at the top of a checkout otherwise."""
    package = Path(transfer_run.__file__).resolve().parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parents[1] / "configs"


def names(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """All choices of a config group, nested ones as `peft/dora`, in alphabetical order.

    Args:
        folders: the user's own config folders, beside the packaged ones.
    """
    return sorted(_files(group, folders))


def find(group: str, name: str, folders: Sequence[Path] = ()) -> list[Path]:
    """The files that call themselves `group=name`; more than one when a user's file takes a packaged name."""
    paths = [root / group / f"{name}.yaml" for root in (config_root(), *folders)]
    return list(dict.fromkeys(path.resolve() for path in paths if path.is_file()))


def entries(group: str, folders: Sequence[Path] = ()) -> list[Entry]:
    """Every choice of a config group with its title and family.

    Raises:
        UserError: a file is no YAML mapping.
    """
    return [entry(group, name, folders) for name in names(group, folders)]


def entry(group: str, name: str, folders: Sequence[Path] = ()) -> Entry:
    """One choice of a config group.

    Raises:
        UserError: there is none of that name, or its file is no YAML mapping.
    """
    files = _files(group, folders)
    if name not in files:
        raise unknown_choice(group, name, folders)
    content = _read(group, name, files)
    node = content.get(group) if isinstance(content.get(group), dict) else content
    about = node.get("about") or {}
    family = about.get("family") or node.get("family") or node.get("form") or ""
    if group == "table":
        family = name.rpartition("/")[0]
    title = about.get("title") or content.get("title") or _comment(files[name])
    return Entry(name, str(title), str(family), files[name], content)


def unknown_choice(group: str, name: str, folders: Sequence[Path] = (), where: str = "") -> UserError:
    """The error for a choice that does not exist, with the nearest ones that do."""
    valid = names(group, folders)
    plural = next((kind for kind, of in KINDS.items() if of == group), group)
    listing = f"`transfer-list {plural}` names them all" if valid else f"no {group} is installed"
    return UserError(
        f"There is no {group} {name!r}.",
        where=where or f"{group}={name}",
        nearest=nearest_choices(name, valid),
        remedy=listing,
    )


def nearest_choices(wrong: str, valid: Sequence[str]) -> list[str]:
    """The three choices closest to `wrong`: those that end in it, then by spelling, in full or in the last part."""
    close = [name for name in valid if name.endswith(f"/{wrong}")] + nearest_names(wrong, valid)
    short = {name.rsplit("/", 1)[-1]: name for name in reversed(valid)}
    close += [short[part] for part in nearest_names(wrong.rsplit("/", 1)[-1], short)]
    return list(dict.fromkeys(close))[:3]


def _files(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in (config_root(), *folders):
        for path in sorted((root / group).rglob("*.yaml")):
            found.setdefault(path.relative_to(root / group).with_suffix("").as_posix(), path)
    return found


def _read(group: str, name: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """The file's content over that of the files of its group that its defaults list names."""
    try:
        own = yaml.load(files[name].read_text(encoding="utf-8"), Loader=_Loader) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{files[name]} is not valid YAML.", where=f"{files[name]}{line}", remedy=str(error)) from error
    if not isinstance(own, dict):
        raise UserError(f"{files[name]} holds no keys.", where=str(files[name]), remedy="write KEY: VALUE lines")
    content: dict[str, Any] = {}
    for item in own.pop("defaults", []):
        parent = str(item).removeprefix(f"/{group}/")
        beside = f"{name.rpartition('/')[0]}/{parent}".lstrip("/")
        for candidate in (beside, parent):
            if isinstance(item, str) and candidate in files and candidate != name:
                content = _merged(content, _read(group, candidate, files))
                break
    return _merged(content, own)


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _comment(file: Path) -> str:
    """What the comment at the head of the file says, up to the end of its first sentence."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# ").strip())
    text = " ".join(lines)
    return text.partition(". ")[0].rstrip(".") if text else ""

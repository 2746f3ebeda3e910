"""What there is to choose from: the files of the config search path, read without composing anything.

A choice is a file: `method=peft/dora` is `method/peft/dora.yaml` in the packaged configs or in a folder of the
user's. Nothing has to be registered anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.files import read_yaml

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


_PACKAGE = re.compile(r"#\s*@package\s+(\S+)")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Entry:
    """One choice.

    Attributes:
        name: what stands after `=`, its path below the group's folder.
        title: the paper's title, or what the file's first comment says.
        family: a method's family, a backbone's family, a dataset's form; a table's method.
        file: where it is written.
        content: what it adds to a config, as plain data from the config's root, files it builds on included.
    """

    name: str
    title: str
    family: str
    file: Path
    content: Mapping[str, Any]


def config_root() -> Path:
    """The packaged configs: beside the code in an installed package, at the top of a checkout otherwise."""
    package = Path(__file__).resolve().parents[2]
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
    files = _files(group, folders, hidden=True)
    if name not in files:
        raise unknown_choice(group, name, folders)
    content = _read(group, name, files)
    node = _keys(content.get(group))
    about = _keys(node.get("about"))  # what is wrong with it is said when it is chosen
    family = (
        name.rpartition("/")[0] if group == "table" else about.get("family") or node.get("family") or node.get("form")
    )
    title = about.get("title") or node.get("title") or _comment(files[name])
    return Entry(name, _filled(title, content), _filled(family or "", content), files[name], content)


def _filled(text: Any, content: Mapping[str, Any]) -> str:
    """`text` with `${a.b}` as the file sets it; what other files set stays as it is written."""
    return _REFERENCE.sub(lambda match: str(_at(content, match[1].split("."), match[0])), str(text))


def _at(content: Mapping[str, Any], keys: Sequence[str], otherwise: str) -> Any:
    value: Any = content
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return otherwise
        value = value[key]
    return otherwise if isinstance(value, Mapping) else value


def _keys(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


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


def _files(group: str, folders: Sequence[Path], *, hidden: bool = False) -> dict[str, Path]:
    """The group's files by name; those that begin with `_` are there to be built on, not to be chosen."""
    found: dict[str, Path] = {}
    for root in (config_root(), *folders):
        for path in sorted((root / group).rglob("*.yaml")):
            if hidden or not path.name.startswith("_"):
                found.setdefault(path.relative_to(root / group).with_suffix("").as_posix(), path)
    return found


def built_on(group: str, name: str, folders: Sequence[Path] = ()) -> list[Path]:
    """The files that make up a choice: those that its defaults list names, each after its own, and itself last."""
    return list(dict.fromkeys(_chain(group, name, _files(group, folders, hidden=True))))


def _chain(group: str, name: str, files: Mapping[str, Path], base: str = "") -> list[Path]:
    parents = [each for each in _parents(group, read_yaml(files[name]), base) if each in files]
    below = [path for each in parents for path in _chain(group, each, files, each[: each.rfind("/") + 1])]
    return [*below, files[name]]


def _parents(group: str, content: Mapping[str, Any], base: str) -> list[str]:
    """The choices of its own group that a file's defaults list names."""
    named = [item.partition("@")[0] for item in content.get("defaults", []) if isinstance(item, str)]
    return [each.removeprefix(f"/{group}/") if each.startswith("/") else f"{base}{each}" for each in named]


def _read(group: str, name: str, files: Mapping[str, Path], base: str = "") -> dict[str, Any]:
    """What the file adds to a config, over what the files of its group that its defaults list names add.

    Args:
        base: the folder below the group's that relative names start from: as Hydra has it, the group's own for a
            choice, and the file's own for a file that another one builds on.
    """
    own = read_yaml(files[name])
    content: dict[str, Any] = {}
    for parent in _parents(group, own, base):
        if parent in files:
            content = merged(content, _read(group, parent, files, parent[: parent.rfind("/") + 1]))
    own.pop("defaults", None)
    path = group if group == "table" else f"{group}/{name}".rpartition("/")[0].replace("/", ".")
    return merged(content, _placed(own, _package(files[name]) or path))


def _package(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        match = _PACKAGE.match(line)
        if match:
            return match[1]
    return ""


def _placed(content: dict[str, Any], package: str) -> dict[str, Any]:
    for key in reversed(package.split(".") if package != "_global_" else []):
        content = {key: content}
    return content


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings over one another; where both hold a key that is no mapping in both, `above` wins."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def comment(file: Path) -> list[str]:
    """The lines of the comment at the head of a file, without the package that they are placed in."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return lines


def _comment(file: Path) -> str:
    """What the comment at the head of the file says, up to the end of its first sentence."""
    text = " ".join(line.strip() for line in comment(file))
    return text.partition(". ")[0].rstrip(".") if text else ""

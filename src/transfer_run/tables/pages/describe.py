"""From the files of a choice to its page; torch is not imported, and nothing is composed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.backbones.declared import HAS, Family, family_of, serves
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compatibility import known_families, phrase, reads
from transfer_run.experiment.config.registry import Entry, entries, entry
from transfer_run.experiment.config.schema import ABOUT
from transfer_run.files import read_yaml
from transfer_run.tables.pages.evidence import measured, tables_of
from transfer_run.tables.pages.options import options
from transfer_run.tables.pages.page import Page, Section

NAMED = 8
"""Choices that a page names of each kind before it says how many more there are."""


def page(group: str, name: str, folders: Sequence[Path] = ()) -> Page:
    """The page of `group=name`: a method, a data set, a backbone, or any other choice.

    Args:
        folders: the user's own config folders.

    Raises:
        UserError: there is no such choice.
    """
    found = entry(group, name, folders)
    node = found.content.get(group) or {}
    about = node.get(ABOUT) or {}
    files = registry.built_on(group, name, folders)
    own, others = options(found, group, files)
    head = registry.comment(found.file)
    describes = about.get("does") or " ".join(line.strip() for line in head)
    tables = tables_of(group, name) if group in TELL else []
    sheets = [sheet for spec in tables if (sheet := measured(group, name, spec)) is not None]
    return Page(name, _title(about), [
        Section("What it does" if group == "method" else "What it is", [describes] if describes else []),
        Section("When to choose it", [about["choose"]] if about.get("choose") else []),
        Section("Works on", items=TELL[group](name, node, folders) if group in TELL else []),
        Section("Options", items=[(f"{option.key}={option.default}", option.says) for option in own]),
        Section("Sets", items=[(f"{option.key}={option.default}", option.says) for option in others]),
        Section("Notes", lines=head if about.get("does") else []),
        Section("Commands", commands=commands(group, name, node, folders)),
        Section("Measured", sheets=sheets),
        Section("Tables", items=[(f"transfer-table {spec.name}", spec.title) for spec in tables]),
        Section("Files", items=[(file.name, str(_short(file))) for file in files] + _module(about)),
    ])  # fmt: skip


def _title(about: Mapping[str, Any]) -> str:
    """The title that the file gives; a first sentence that says what it is stands below anyway."""
    facts = [f"{key} {about[key]}" for key in ("family", "shape") if about.get(key)]
    facts += [f"arXiv {about['arxiv']}"] if about.get("arxiv") else []
    title = str(about.get("title") or "")
    return f"{title} ({', '.join(facts)})" if title and facts else title


def _of_method(name: str, node: Mapping[str, Any], folders: Sequence[Path]) -> list[tuple[str, str]]:
    about = node.get(ABOUT) or {}
    families = [family for family in known_families(folders).values() if serves(about, family)]
    found = entries("backbone", folders)
    told = [(f"family {family.name}", _some([each.name for each in found if each.family == family.name], 5))
            for family in families]  # fmt: skip
    needs = about.get("needs") or ", ".join(HAS.get(what, what) for what in about.get("asks") or ())
    told += [("they have", needs)] if needs else []
    told += [("tasks", ", ".join(about.get("tasks") or ()) or "any that the backbone answers")]
    told += [(f"reads {key}", str(what)) for key, what in (about.get("reads") or {}).items()]
    return told + [(f"beside {key}", str(what)) for key, what in (about.get("beside") or {}).items()]


def _of_dataset(name: str, node: Mapping[str, Any], folders: Sequence[Path]) -> list[tuple[str, str]]:
    held, form = reads(node), str(node.get("form"))
    fitting = _fitting(node, folders)
    told = [("holds", phrase(held))] if held else []
    told += [("asks for", _form(node, form)), ("scored by", ", ".join(node.get("metrics") or ()))]
    told += [("needs dataset.path", node[ABOUT]["needs_path"])] if (node.get(ABOUT) or {}).get("needs_path") else []
    names = [each.name for each in entries("backbone", folders) if each.family in fitting]
    return told + ([("backbones", _some(names))] if names else [])


def _form(node: Mapping[str, Any], form: str) -> str:
    key = form.removeprefix("${dataset.").removesuffix("}")
    if key == form:
        return form
    others = ((node.get(ABOUT) or {}).get("options") or {}).get(key) or []
    return f"{node.get(key)} (dataset.{key}: {', '.join(map(str, others))})"


def _of_backbone(name: str, node: Mapping[str, Any], folders: Sequence[Path]) -> list[tuple[str, str]]:
    family = family_of(node)
    names = [each.name for each in entries("method", folders) if serves(_about(each, "method"), family)]
    told = [("family", family.name), ("reads", ", ".join(map(phrase, family.reads)) or "anything"),
            ("answers", ", ".join(family.answers) or "anything"),
            ("weights", _weights(node)), ("methods", _some(names))]  # fmt: skip
    return told


def _weights(node: Mapping[str, Any]) -> str:
    weights = str(node.get("weights"))
    return f"{weights}: {node['hub']} on the hub" if node.get("hub") and weights == "hub" else weights


TELL: dict[str, Callable[[str, Mapping[str, Any], Sequence[Path]], list[tuple[str, str]]]] = {
    "method": _of_method, "dataset": _of_dataset, "backbone": _of_backbone,
}  # fmt: skip


def commands(group: str, name: str, node: Mapping[str, Any], folders: Sequence[Path] = ()) -> list[str]:
    """The command lines of a page: those that its file names, or a run on installed data, a paper's, and its plan."""
    about = node.get(ABOUT) or {}
    if about.get("commands") or group not in TELL:
        return [str(line) for line in about.get("commands") or [f"transfer-run {group}={name}"]]
    families = [family for family in _families(group, node, folders) if family.usual]
    if not families:
        return [f"transfer-run {group}={name}", f"transfer-plan {group}={name}"]
    first = families[-1]
    declared = [family for key in about.get("backbones") or () for family in families if family.name == key]
    usual = (declared or families[-2:])[0]
    own = [f"{group}={name}"]
    if (about.get("needs_path") or "") and group == "dataset":
        own.append(f"dataset.path={_capital(about['needs_path'])}")
    if group == "method":
        lines = [["transfer-run", *own, *first.tries], ["transfer-run", *own, *usual.usual, "hardware=1gpu"]]
        return [" ".join(line) for line in (*lines, ["transfer-plan", *own, *usual.usual])]
    kept = [word for word in (first.tries if _small(node) else first.usual) if _group(word) != group]
    method = [f"method={_method_for(first, folders)}"]
    base = [*method, *own, *(word for word in kept if _key(word) not in map(_key, own))]
    seeds = ["transfer-run", "-m", "seed=0,1,2", *base]
    return [" ".join(line) for line in (["transfer-run", *base], ["transfer-plan", *base], seeds)]


def _method_for(family: Family, folders: Sequence[Path]) -> str:
    """The method that runs without any word, or the first that saves activations, where that one is not defined."""
    fitting = [each for each in entries("method", folders) if serves(_about(each, "method"), family)]
    usual = {key: value for item in read_yaml(registry.config_root() / "run.yaml")["defaults"] if isinstance(item, dict)
             for key, value in item.items()}["method"]  # fmt: skip
    order = sorted(fitting, key=lambda each: (each.name != usual, not _about(each, "method").get("saves")))
    return order[0].name


def _families(group: str, node: Mapping[str, Any], folders: Sequence[Path]) -> list[Family]:
    """The families that a page's commands may take, in the order of their names."""
    if group == "backbone":
        return [family_of(node)]
    known = known_families(folders)
    if group == "method":
        return [family for family in known.values() if serves(node.get(ABOUT) or {}, family)]
    return [known[name] for name in _fitting(node, folders)]


def _fitting(node: Mapping[str, Any], folders: Sequence[Path]) -> list[str]:
    """The families that read and answer a data set."""
    held, form = reads(node), str(node.get("form")).replace("${dataset.task}", str(node.get("task")))
    return [name for name, family in known_families(folders).items()
            if held in ("", *family.reads) and form in (family.answers or (form,))]  # fmt: skip


def _small(node: Mapping[str, Any]) -> bool:
    """Is it one to try things on: an untrained backbone, or a data set that is installed?"""
    return node.get("weights") != "hub" if "weights" in node else not node.get("hub")


def _key(word: str) -> str:
    return word.partition("=")[0]


def _group(word: str) -> str:
    return _key(word).partition(".")[0] if _key(word) != "backbone.tower" else ""


def _capital(text: str) -> str:
    found = re.match(r"[A-Z]+", text)
    return found[0] if found else "FOLDER"


def _about(found: Entry, group: str) -> Mapping[str, Any]:
    return (found.content.get(group) or {}).get(ABOUT) or {}


def _some(names: Sequence[str], most: int = NAMED) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _module(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("module", str(about["target"]))] if about.get("target") else []


def _short(file: Path) -> Path:
    root = registry.config_root().parent
    return file.relative_to(root) if file.is_relative_to(root) else file

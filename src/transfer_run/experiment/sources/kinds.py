"""The sources of a run against what its method and its data set say that they read: before any is made.

A source that is a folder of no run, or of the hub, is a model; a run makes what its method says (`artifacts.makes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.artifacts import artifact, makes
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.reads import SOURCES, Read, keys, reads, value_at
from transfer_run.experiment.sources.source import Source


def check_sources(run: Run, sources: Sequence[Source]) -> None:
    """Compare the sources of a run with what its method declares.

    Raises:
        UserError: a name that the method does not read, one that it needs and misses, or a source of another kind.
    """
    method: Mapping[str, Any] = run.config["method"]
    wanted = {entry.name: entry for entry in reads(method) if entry.kinds and not entry.is_key_of(method)}
    for entry in wanted.values():
        for kind in entry.kinds:
            artifact(kind, run.search_path, where=f"method={method['name']}: about.reads.{entry.name}")
    for entry, listed in keys(method, SOURCES):
        if not listed:
            raise UserError(
                f"method={method['name']} works on sources, and the run names none.",
                where=f"sources, method.{entry.name}",
                remedy='sources.NAME="method=... dataset=..." (a run\'s words), one or more',
            )
    for source in sources:
        _check_kind(source, source.reference.kinds or _entry(source, wanted, method).kinds, run)
    named = {source.name for source in sources}
    for name, entry in [(name, each) for each in wanted.values() for name in _names(each, method)]:
        if name not in named and "*" not in name and not entry.optional and entry.read_by(method):
            key = entry.key or entry.listed
            because = f" with method.{key}={value_at(method, key)}" if key else ""
            raise UserError(
                f"method={method['name']} needs a source {name!r}{because}, and the run names none.",
                where=f"sources.{name}",
                remedy=f'sources.{name}="method=full dataset=..." (a run\'s words), or the folder of a run or a model',
            )
    _check_some(method, [name for name, words in run.config["sources"].items() if words])


def _check_some(method: Mapping[str, Any], sources: Sequence[str]) -> None:
    """Refuse a method that reads any number of sources, but not none, where the words name nothing.

    Raises:
        UserError: with both ways to name some.
    """
    for entry in reads(method):
        if entry.other and not sources and not value_at(method, entry.other):
            raise UserError(
                f"method={method['name']} needs something to read, and the run names nothing.",
                where=f"sources, method.{entry.other}",
                remedy=f'sources.a="method=full ..." sources.b="method=full ..." (words or folders of runs), or '
                f"method.{entry.other}=[FOLDER,FOLDER]",
            )


def _names(entry: Read, method: Mapping[str, Any]) -> Sequence[str]:
    """The sources of an entry: its own name, a pattern, or those that a key of the method lists."""
    return [str(name) for name in value_at(method, entry.listed) or ()] if entry.listed else [entry.name]


def _entry(source: Source, wanted: Mapping[str, Read], method: Mapping[str, Any]) -> Read:
    entries = [e for e in wanted.values() if any(fnmatchcase(source.name, name) for name in _names(e, method))]
    for entry in entries:
        if entry.read_by(method):
            return entry
    if entries:
        raise UserError(
            f"method={method['name']} reads sources.{source.name} only with "
            f"method.{entries[0].key}={' or '.join(entries[0].values)}.",
            where=source.where,
            remedy=f"set that, or take sources.{source.name} out",
        )
    names = [name for entry in wanted.values() for name in _names(entry, method) if name != "*"]
    known = f"it reads {', '.join(names)}" if names else "it reads none"
    raise UserError(
        f"method={method['name']} reads no source {source.name!r}: {known}.",
        where=source.where,
        nearest=[f"sources.{near}" for near in nearest_names(source.name, names)],
        remedy="name it right or take it out; a method of your own declares it, as about.reads: {teacher: model}",
    )


def _check_kind(source: Source, kinds: Sequence[str], run: Run) -> None:
    config = source.config
    kind = "model" if config is None else makes(config)
    if kind in kinds:
        return
    folders = [*run.search_path, *map(Path, (config or {}).get("search_path") or ())]
    group = "dataset" if source.name.startswith("dataset.") else "method"
    makers = [
        e.name for e in registry.entries("method", folders) if makes({"dataset": {"form": ""}, **e.content}) in kinds
    ]
    by = f"a run of method={value_at(config, 'method.name')}, which makes" if config is not None else "no run but"
    raise UserError(
        f"The source {source.name!r} is {by} {artifact(kind, folders).says}; {group}={run.chosen(group)} "
        f"reads {' or '.join(artifact(each, folders).says for each in kinds) or 'nothing'} there.",
        where=source.where,
        remedy="name a run that trains a model"
        if "model" in kinds
        else f"name a run of method={', '.join(makers[:6])}"
        if makers
        else "name a run that makes it; a method says what it makes (about.makes)",
    )

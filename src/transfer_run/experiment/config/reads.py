"""What a method or a data set reads beside its batches, as its file says: `about.reads`. Imports nothing heavy.

    about:
      reads:
        teacher: model                               sources.teacher, a run that makes a model, must be named
        baseline: "model?"                           may be named
        trained: model if stage=compress|finetune    must be named with one of these values of its own key, else not
        "*": model in teachers                       the names that its own key `teachers` lists, all and no other
        first: model of the stage before             in `stages` the run of the stage before is this source
        "*": "model?"                                any name; `surrogate*` any that begins so
        "*": model or own models                     at least one, or what its own key `models` names
        path: images                                 its own key: a path, or run:WORDS of a run that makes images
        base: paths unless ones                      its own key: files, folders or hub models, one or a list; or a word
        around: method                               its own key: the words of a method that it wraps, or null
        pool: backbones                              its own key: backbones, "NAME" or "NAME weights=WEIGHTS"
        tasks: datasets                              its own key: a list of the words of data sets
        texts: dataset unless classes|random         its own key: the words of one, or one of these words
        tasks: sources                               its own key: the sources that it reads, by name; null: all named
        tuned: finished full on this dataset         the finished runs of a method below OUTPUT_DIR/runs
        tried: finished full in runs                 those in the folder that its own key `runs` names

What is not one of the last seven is a kind of artifact (`artifacts.py`), or several: `model|files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from transfer_run.errors import UserError

PATHS, BACKBONES, DATASETS, DATASET = "paths", "backbones", "datasets", "dataset"
SOURCES, METHOD = "sources", "method"
_FINISHED = re.compile(r"finished (?P<method>\S+)(?P<here> on this dataset)?(?: in (?P<folder>[\w.]+))?")
_GRAMMAR = re.compile(
    r"(?P<kinds>\w+(?:\|\w+)*)(?P<optional>\?)?(?P<stage> of the stage before)?(?: in (?P<listed>[\w.]+))?"
    r"(?: or own (?P<other>[\w.]+))?(?: unless (?P<words>\w+(?:\|\w+)*))?(?: if (?P<key>[\w.]+)=(?P<values>.+))?"
)


@dataclass(frozen=True)
class Read:
    """One entry of `about.reads`.

    Attributes:
        kinds: kinds of artifacts, or one of the words above.
        optional: may it be missing?
        stage: is it the run of the stage before?
        listed: the key of its own that lists the names, all of which must be named.
        other: its own key that may name what stands in its place.
        words: values of the key that name nothing.
        key: its own key that it depends on, with the `values` for which it is read.
        method: whose finished runs are read: a name, or the key of its own that holds one.
        here: only those on this run's data set.
        folder: the key that names their folder.
    """

    name: str
    kinds: tuple[str, ...] = ()
    optional: bool = False
    stage: bool = False
    listed: str = ""
    other: str = ""
    words: tuple[str, ...] = ()
    key: str = ""
    values: tuple[str, ...] = ()
    method: str = ""
    here: bool = False
    folder: str = ""

    def read_by(self, node: Mapping[str, Any]) -> bool:
        """Is it read with the values that the node's keys have?"""
        return not self.key or str(value_at(node, self.key)).lower() in [each.lower() for each in self.values]

    @property
    def is_of_others(self) -> bool:
        """Does it name files, backbones, data sets, sources or a method, and no kind of artifact?"""
        return bool(set(self.kinds) & {PATHS, BACKBONES, DATASETS, DATASET, SOURCES, METHOD})

    def is_key_of(self, node: Mapping[str, Any]) -> bool:
        """Is it one of the node's own keys, and not a name below `sources`?"""
        *parents, leaf = self.name.split(".")
        above = value_at(node, ".".join(parents)) if parents else node
        return isinstance(above, Mapping) and leaf in above


def reads(node: Mapping[str, Any]) -> list[Read]:
    """The entries of a `method` or `dataset` node, in their order.

    Raises:
        UserError: one cannot be read.
    """
    about = node.get("about") or {}
    return [_parsed(str(name), str(words), str(node.get("name"))) for name, words in (about.get("reads") or {}).items()]


def keys(node: Mapping[str, Any], *kinds: str) -> Iterator[tuple[Read, Any]]:
    """The node's own keys that read one of these kinds, with their values."""
    for entry in reads(node):
        if entry.is_key_of(node) and set(entry.kinds) & set(kinds):
            yield entry, value_at(node, entry.name)


def artifact_keys(node: Mapping[str, Any]) -> Iterator[tuple[Read, Any]]:
    """The node's own keys that may name a run (`run:WORDS`) by what it makes."""
    for entry in reads(node):
        if entry.is_key_of(node) and entry.kinds and not entry.is_of_others:
            yield entry, value_at(node, entry.name)


def value_at(node: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


@cache
def _parsed(name: str, words: str, whose: str) -> Read:
    if found := _FINISHED.fullmatch(words):
        return Read(name, method=found["method"], here=bool(found["here"]), folder=found["folder"] or "")
    match = _GRAMMAR.fullmatch(words)
    if match is None or words == "finished":  # of which method?
        raise UserError(
            f"about.reads.{name} cannot be read: {words!r}.",
            where=whose,
            remedy="write a kind as model or model?, `model if KEY=VALUE`, or paths, backbones, datasets",
        )
    return Read(
        name,
        tuple(match["kinds"].split("|")),
        bool(match["optional"]),
        bool(match["stage"]),
        match["listed"] or "",
        match["other"] or "",
        tuple((match["words"] or "").split("|")) if match["words"] else (),
        match["key"] or "",
        tuple(match["values"].split("|")) if match["values"] else (),
    )

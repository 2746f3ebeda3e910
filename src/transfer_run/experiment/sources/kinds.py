"""The sources that a method reads, as its config declares them, against those that a run names: before any is made.

    about:
      sources:
        teacher: model                               must be named
        baseline: "model?"                           may be named
        trained: model if stage=compress|finetune    must be named with one of these values of method.stage, else not
        "*": "model?"                                any name; `surrogate*` any that begins so

A kind is what a run makes: a `model`; `files`, merged without data; `rows` of a data set; a `ranking`. It follows from
the method's shape where its `about.makes` does not say it. A folder that is no run, or of the hub, is a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.compatibility import without_data
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.sources.source import Source
from transfer_run.run_folder import is_run, read_config

KINDS = {"model": "a model", "files": "merged files", "rows": "a part of a data set", "ranking": "a ranking"}
OF_SHAPE = {"score": "ranking", "reshape": "rows"}
"""What runs of these shapes make; all others make a model."""

_GRAMMAR = re.compile(r"(?P<kinds>\w+(?:\|\w+)*)(?P<optional>\?)?(?: if (?P<key>[\w.]+)=(?P<values>.+))?")


@dataclass(frozen=True)
class Wanted:
    """One entry of `about.sources`.

    Attributes:
        kinds: what the source may make.
        optional: may it be missing?
        key: the method's key that it depends on, with the `values` for which it is read.
    """

    kinds: tuple[str, ...]
    optional: bool = False
    key: str = ""
    values: tuple[str, ...] = ()

    def read_by(self, method: Mapping[str, Any]) -> bool:
        if not self.key:
            return True
        return str(value_at(method, self.key)).lower() in [each.lower() for each in self.values]


def value_at(node: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


OWN = {"backbone": Wanted(("model", "files")), "pool.*": Wanted(("model", "files")), "dataset.rows": Wanted(("rows",))}
"""Sources that other keys name: any method reads them."""


def declared(method: Mapping[str, Any]) -> dict[str, Wanted]:
    """The entries of a method's `about.sources`, in their order.

    Raises:
        UserError: one cannot be read.
    """
    found = {}
    for name, words in ((method.get("about") or {}).get("sources") or {}).items():
        match = _GRAMMAR.fullmatch(str(words))
        kinds = tuple(match["kinds"].split("|")) if match else ()
        if match is None or not set(kinds) <= KINDS.keys():
            raise UserError(
                f"method.about.sources.{name} cannot be read: {words!r}.",
                where=f"method={method['name']}",
                remedy=f"write model, model? or `model if KEY=VALUE`; the kinds are {', '.join(KINDS)}",
            )
        values = tuple(match["values"].split("|")) if match["values"] else ()
        found[str(name)] = Wanted(kinds, bool(match["optional"]), match["key"] or "", values)
    return found


def makes(config: Mapping[str, Any]) -> str:
    """What the run of a composed config makes."""
    about = (config.get("method") or {}).get("about") or {}
    if about.get("shape") == "combine" and without_data(config) and not config.get("sources"):
        return "files"
    return str(about.get("makes") or OF_SHAPE.get(str(about.get("shape")), "model"))


def check_sources(run: Run, sources: Sequence[Source]) -> None:
    """Compare the sources of a run with what its method declares.

    Raises:
        UserError: a name that the method does not read, one that it needs and misses, or a source of another kind.
    """
    method: Mapping[str, Any] = run.config["method"]
    wanted = declared(method)
    for source in sources:
        _check_kind(source, _entry(source, {**wanted, **OWN}, method), method)
    named = {source.name for source in sources}
    for name, entry in wanted.items():
        if name not in named and "*" not in name and not entry.optional and entry.read_by(method):
            because = f" with method.{entry.key}={value_at(method, entry.key)}" if entry.key else ""
            raise UserError(
                f"method={method['name']} needs a source {name!r}{because}, and the run names none.",
                where=f"sources.{name}",
                remedy=f'sources.{name}="method=full dataset=..." (a run\'s words), or the folder of a run or a model',
            )


def _entry(source: Source, wanted: Mapping[str, Wanted], method: Mapping[str, Any]) -> Wanted:
    entries = [entry for name, entry in wanted.items() if fnmatchcase(source.name, name)]
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
    names = [name for name in wanted if name not in OWN and name != "*"]
    reads = f"it reads {', '.join(names)}" if names else "it reads none"
    raise UserError(
        f"method={method['name']} reads no source {source.name!r}: {reads}.",
        where=source.where,
        nearest=[f"sources.{near}" for near in nearest_names(source.name, names)],
        remedy="name it right or take it out; a method of your own declares it, as about.sources: {teacher: model}",
    )


def _check_kind(source: Source, entry: Wanted, method: Mapping[str, Any]) -> None:
    config = source.run.config if source.run is not None else None
    if config is None and source.folder is not None and is_run(source.folder):
        config = read_config(source.folder)  # named by its identity
    kind = "model" if config is None else makes(config)
    if kind not in entry.kinds:
        by = value_at(config, "method.name")
        raise UserError(
            f"The source {source.name!r} is a run of method={by}, which makes {KINDS[kind]}; method={method['name']} "
            f"reads {' or '.join(KINDS[each] for each in entry.kinds)} there.",
            where=source.where,
            remedy="name a run that trains a model" if "model" in entry.kinds else "name a run of method=dp4tl",
        )

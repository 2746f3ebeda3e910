"""What a run reads of others: every key of its config that names a run, a model or a backbone, found here and nowhere
else. Identity, digests, checks before the run, dry run and the sources themselves ask this list.

    sources.NAME                  a run that the method reads
    backbone.weights              run:WORDS or stage:WORDS
    backbone.tokenizer            run:WORDS
    dataset.rows                  run:WORDS, or a file or folder
    own keys                      of a method or a data set that say so (`reads.py`): run:WORDS, or backbones

What is named is a run by its words, a run or model by its folder, a finished run by the beginning of its identity, or
a model of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import Weights
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.artifacts import fitting
from transfer_run.experiment.config.own_files import check_own_file
from transfer_run.experiment.config.reads import BACKBONES, SOURCES, Read, artifact_keys, keys, reads, value_at
from transfer_run.files import user_path
from transfer_run.run_folder import RESULT, finished_runs, read_result
from transfer_run.words import named

BACKBONE, ROWS, TOKENIZER = "backbone", "dataset.rows", "backbone.tokenizer"
"""Names of the sources that other keys than `sources` name."""

RUN = "run:"
Backbones = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Nodes of the backbones that a method's keys name, by key and words."""

_IDENTITY = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Reference:
    """One key that names a run, or what could be one.

    Attributes:
        name: what the run calls it: `sources` of its context has it under this name.
        key: the config's key.
        words: what is named, without `run:` or `stage:`.
        key_path: where it stands in what the identity is made of.
        start: `run:` or `stage:` before the words, where the identity keeps it.
        of_run: False where a file or folder of another kind is named.
        kinds: what the run may make; empty: the method says it (`sources.NAME`).
    """

    name: str
    key: str
    words: str
    key_path: tuple[str, ...]
    start: str = ""
    of_run: bool = True
    kinds: tuple[str, ...] = ()

    @property
    def is_words(self) -> bool:
        """Are these the words of a run, and not a folder, an identity or a model of the hub?"""
        return "=" in self.words

    @property
    def folder(self) -> Path | None:
        """The folder or file that is named and exists."""
        if self.is_words:
            return None
        path = user_path(self.words, f"{self.key}: {self.words}")
        return path if path.exists() else None

    @property
    def is_identity(self) -> bool:
        return _IDENTITY.fullmatch(self.words) is not None

    def finished(self, output_dir: str) -> list[Path]:
        """Folders of the finished runs whose identity begins as the words say."""
        found = (Path(output_dir) / "runs").glob(f"**/*-{self.words[:8]}*/{RESULT}") if self.is_identity else ()
        return sorted(result.parent for result in found)

    def canonical(self, identity: str | None) -> str:
        """The form that all ways of naming it share: the first 8 digits of the run's identity, or the folder.

        Args:
            identity: of the run behind it, where there is one.
        """
        if identity is not None:
            return f"{self.start}{identity[:8]}"
        if self.folder is not None:
            return f"{self.start}{self.folder.resolve()}"
        return self.start + (self.words[:8] if self.is_identity else self.words)


def references(config: Mapping[str, Any], backbones: Backbones, folders: Sequence[Path] = ()) -> tuple[Reference, ...]:
    """All references of a composed config, in the order in which their runs are carried out.

    Args:
        backbones: those that the method's keys name, by key and words.
        folders: the user's own config folders.

    Raises:
        UserError: a key that reads a run names none (`run:`).
    """
    found = tuple(_references(config, backbones, folders))
    for each in found:
        if each.of_run and not each.words.strip():
            raise UserError(
                f"{each.key} names no run.",
                where=each.key,
                remedy=f'write {each.key}="{each.start}method=full dataset=...", or its folder or identity',
            )
    return found


def _references(config: Mapping[str, Any], backbones: Backbones, folders: Sequence[Path]) -> Iterator[Reference]:
    for name, words in (config.get("sources") or {}).items():
        yield Reference(name, f"sources.{name}", str(words or ""), ("sources", name))
    weights = Weights.of(config.get("backbone") or {})
    if weights.of_run:
        kinds = fitting("backbone.weights", folders)
        key = "stages" if weights.kind == "stage" and weights.words else "backbone.weights"
        yield Reference(BACKBONE, key, weights.words, ("backbone", "weights"), f"{weights.kind}:", True, kinds)
    tokenizer = str((config.get("backbone") or {}).get("tokenizer"))
    if tokenizer.startswith(RUN):
        words, place = tokenizer.removeprefix(RUN), ("backbone", "tokenizer")
        yield Reference(TOKENIZER, TOKENIZER, words, place, RUN, True, fitting(TOKENIZER, folders))
    for key, nodes in backbones.items():
        for words, node in nodes.items():
            if (weights := Weights.of(node)).of_run:
                name = f"{key}.{words}"
                kinds = fitting("backbone.weights", folders)
                key_path = ("candidates", words, "weights")
                yield Reference(name, f"method.{name}", weights.words, key_path, f"{weights.kind}:", True, kinds)
    if rows := (config.get("dataset") or {}).get("rows"):
        words = str(rows).removeprefix(RUN)
        yield Reference(ROWS, ROWS, words, ("dataset", "rows"), "", words != str(rows), fitting(ROWS, folders))
    for group in ("dataset", "method"):
        for entry, value in artifact_keys(config.get(group) or {}):
            if isinstance(value, str) and value.startswith(RUN):
                key = f"{group}.{entry.name}"
                yield Reference(key, key, value.removeprefix(RUN), tuple(key.split(".")), RUN, True, entry.kinds)


def named_backbones(config: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, dict[str, dict[str, Any]]]:
    """The `backbone` nodes that the method's keys name (`about.reads: {KEY: backbones}`), by key and words.

    Words are as `write_backbones` leaves them: a backbone's name, or NAME:WEIGHTS for one with other weights.

    Raises:
        UserError: there is no backbone of that name.
    """
    found = {}
    for entry, value in keys(config.get("method") or {}, BACKBONES):
        found[entry.name] = {words: _backbone(words, f"method.{entry.name}: {words}", folders) for words in value or ()}
    return {key: nodes for key, nodes in found.items() if nodes}


def write_backbones(method: dict[str, Any]) -> None:
    """Each of the method's backbones in one form, in place: `vit_tiny weights=random` becomes `vit_tiny:random`.

    Raises:
        UserError: the words cannot be read, or set another key.
    """
    for entry, value in list(keys(method, BACKBONES)):
        *parents, leaf = entry.name.split(".")
        members = [_name_and_weights(words, f"method.{entry.name}: {words}") for words in value or ()]
        written = [f"{name}:{weights}" if weights else name for name, weights in members]
        reduce(dict.__getitem__, parents, method)[leaf] = written if value else value


def write_sources(values: dict[str, Any]) -> None:
    """Fill in the method's keys that hold names of sources, in place: null or an empty list are all that are named.

    A run has the sources that such a key lists and no others, so that a pool of them can stand in an experiment.

    Raises:
        UserError: a name that is no source, or stands twice.
    """
    method, named = values["method"], values["sources"]
    for entry, value in list(keys(method, SOURCES)):
        *parents, leaf = entry.name.split(".")
        chosen = list(value or named)
        for name in chosen:
            if name not in named or chosen.count(name) > 1:
                raise UserError(
                    f"method.{entry.name} lists the source {name!r} twice."
                    if name in named
                    else f"method.{entry.name} lists a source {name!r}, and none of that name is given.",
                    where=f"method.{entry.name}",
                    nearest=[] if name in named else nearest_names(name, named) or sorted(named),
                    remedy="" if name in named else f'sources.{name}="method=... dataset=..." (a run\'s words)',
                )
        reduce(dict.__getitem__, parents, method)[leaf] = chosen
        values["sources"] = {name: named[name] for name in chosen}


def _name_and_weights(words: str, where: str) -> tuple[str, str]:
    name, settings = named(words, where, "a backbone", "vit_tiny weights=random", short="weights")
    unknown = next((key for key in settings if key != "weights"), None)
    if unknown is not None:
        raise UserError(
            f"Only the weights of a backbone can be set here, not {unknown!r}.", where=where, nearest=["weights"]
        )
    return name, str(settings.get("weights") or "")


def _backbone(words: str, where: str, folders: Sequence[Path]) -> dict[str, Any]:
    name, weights = _name_and_weights(words, where)
    if name not in registry.names("backbone", folders):
        raise registry.unknown_choice("backbone", name, folders, where=where)
    content = registry.entry("backbone", name, folders).content
    check_own_file("backbone", name, content, folders)
    node = content.get("backbone")
    if not isinstance(node, Mapping):
        raise UserError(f"The file of backbone={name} sets no `backbone` node.", where=where)
    return {**node, **({"weights": weights} if weights else {})}


def found_runs(config: Mapping[str, Any]) -> dict[str, list[tuple[Path, str]]]:
    """The finished runs that a method looks for (`about.reads: {NAME: finished METHOD ...}`): folders and identities.

    Runs of the method's own kind are never among them: a result that counts itself would never be final.

    Raises:
        UserError: a key names a method or a folder that there is not.
    """
    method, root = config.get("method") or {}, Path(str(config.get("output_dir"))) / "runs"
    found: dict[str, list[tuple[Path, str]]] = {}
    for entry in reads(method):
        if not entry.method:
            continue
        whose = _method_of(entry, method, [Path(folder) for folder in config.get("search_path") or ()])
        named_folder = str(value_at(method, entry.folder) or root) if entry.folder else str(root)
        folder = user_path(named_folder, f"method.{entry.folder}")
        if folder != root and not folder.is_dir():
            raise UserError(
                f"method.{entry.folder}={folder} is no folder.",
                where=f"method.{entry.folder}",
                remedy="name a folder of finished runs",
            )
        folder = folder / str(config["dataset"]["name"]) if entry.here else folder
        results = ((run, read_result(run)) for run in finished_runs(folder, below=not entry.here))
        found[entry.name] = [
            (run, str(result["identity"]))
            for run, result in results
            if result and result.get("identity") and result["method"] == whose != method.get("name")
        ]
    return found


def _method_of(entry: Read, method: Mapping[str, Any], folders: Sequence[Path]) -> str | None:
    """Whose finished runs are read; None: nobody's."""
    if not entry.method.startswith("{"):
        return entry.method
    key = entry.method.strip("{}")
    whose = value_at(method, key)
    if whose is not None and whose not in registry.names("method", folders):
        raise registry.unknown_choice("method", str(whose), folders, where=f"method.{key}={whose}")
    return whose


def recorded_runs(config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Of the runs that a method looks for those that were there when the run was composed: they are in its identity."""
    known = {name: str(config["contents"].get(f"method.{name}", "")).split() for name in found_runs(config)}
    return {
        name: [folder for folder, identity in runs if identity[:8] in known[name]]
        for name, runs in found_runs(config).items()
    }

"""The published files of a model, wherever they lie: in an installed package, in the hub's cache, or on the hub.

What `backbone.weights=hub` names is looked for in this order. The config of a backbone may pin its files by their
digests, and name a package that carries the very same bytes:

    about:
      published:
        of: NAME@REVISION            what the digests are of; at another `backbone.hub` or `revision` nothing is pinned
        sha256: {model.safetensors: 53aa...}     of files in that folder
        package: MODULE/FOLDER       of an installed package; its code is not imported
        install: pip install ...     how to get it, for the message
        instead: BACKBONE            stands in where the model is a default and not on this machine

The bytes are the same wherever they were found, so where they were found is no part of a run's identity: a package
cannot be named without the digest of its weights. Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import hub_name
from transfer_run.errors import UserError, nearest_names

WHERE = "backbone.about.published"


@dataclass(frozen=True)
class Published:
    """What a backbone's config pins.

    Attributes:
        of: NAME@REVISION on the hub; empty for a model that is on none.
        sha256: digests, 64 hexadecimal digits, by the names of files.
        package: a module and the folder in it; empty: no package carries the model.
        install: the command that installs it.
        instead: the backbone that a run which names none takes where this one is not on the machine.
    """

    of: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    package: str = ""
    install: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Found:
    """Files of a model on this machine.

    Attributes:
        place: in words: `the package NAME`, `the hub`, `the hub's cache`.
        commit: of the hub, where it is known.
    """

    folder: Path
    place: str
    commit: str | None = None


def published(backbone: Mapping[str, Any]) -> Published | None:
    """What is pinned of the model that a `backbone` node names; None where nothing is.

    Raises:
        UserError: the config pins what cannot be: another key, no digest, a package without its weights' digest.
    """
    said = (backbone.get("about") or {}).get("published")
    if not said:
        return None
    known = [each.name for each in fields(Published)]
    for key in said:
        if key not in known:
            raise UserError(
                f"There is no key '{WHERE}.{key}'.", where=WHERE, nearest=nearest_names(key, known) or known
            )
    pins = Published(**said)
    for file, digest in pins.sha256.items():
        if len(str(digest)) != 64 or set(str(digest)) - set("0123456789abcdef"):
            raise UserError(f"{digest!r} is no SHA-256: 64 hexadecimal digits.", where=f"{WHERE}.sha256.{file}")
    if not any(file.endswith(".safetensors") for file in pins.sha256):
        raise UserError(
            "The digest of the weights is missing: without it, nobody knows that they are the published ones.",
            where=f"{WHERE}.sha256",
            remedy="sha256: {model.safetensors: DIGEST}, as `sha256sum model.safetensors` prints it",
        )
    return pins if pins.of == _words(backbone.get("hub"), backbone.get("revision")) else None


def find_weights(backbone: Mapping[str, Any]) -> Found:
    """The folder with config and weights of a `backbone` node whose weights are `hub`, fetched if need be.

    Raises:
        UserError: they are nowhere to be had, or are not the pinned ones.
    """
    pins = published(backbone)
    found = pins and _in_package(pins)
    if found:
        return found
    from transfer_run.backbones.weights import hub

    name, revision = _on_hub(backbone, pins), backbone.get("revision")
    cached = hub.cached_weights(name, revision)
    folder = cached or _fetched(hub.fetch_weights, name, revision, pins)
    _check(folder, pins)
    return Found(folder, "the hub's cache" if cached else "the hub", hub.commit_of(folder))


def find_tokenizer(backbone: Mapping[str, Any], words: str | None = None) -> Found:
    """The folder with the tokenizer of a `backbone` node.

    Args:
        words: NAME or NAME@REVISION; None: that of the backbone's own weights.

    Raises:
        UserError: as `find_weights`.
    """
    pins = published(backbone)
    name, _, revision = (words or "").partition("@")
    if words and (pins is None or words != pins.of):
        pins = None  # another model's
    found = pins and _in_package(pins)
    if found:
        return found
    from transfer_run.backbones.weights import hub

    if not words:
        name, revision = _on_hub(backbone, pins), backbone.get("revision") or ""
    folder = _fetched(hub.fetch_tokenizer, name, revision or None, pins)
    _check(folder, pins)
    return Found(folder, "the hub", hub.commit_of(folder))


def refuse_nowhere(backbone: Mapping[str, Any]) -> None:
    """UserError for a model that is on no hub, and in no package that is installed; nobody is asked."""
    pins = published(backbone)
    if not (pins and _folder_of(pins.package)):
        _on_hub(backbone, pins)


def at_hand(backbone: Mapping[str, Any]) -> bool:
    """Are the published weights on this machine? Asks no network."""
    pins = published(backbone)
    if pins and _folder_of(pins.package):
        return True
    from transfer_run.backbones.weights.hub import cached_weights

    return bool(backbone.get("hub")) and cached_weights(str(backbone["hub"]), backbone.get("revision")) is not None


def _words(hub: Any, revision: Any) -> str:
    return "" if not hub else f"{hub}@{revision}" if revision else str(hub)


def _on_hub(backbone: Mapping[str, Any], pins: Published | None) -> str:
    """`backbone.hub`; of a model that only its package has, the error says how to install it."""
    with _installable(pins):
        return hub_name(backbone)


def _fetched(fetch: Callable[[str, str | None], Path], name: str, revision: str | None, pins: Published | None) -> Path:
    with _installable(pins):
        return fetch(name, revision)


@contextmanager
def _installable(pins: Published | None) -> Iterator[None]:
    """What is said of a model that cannot be had names the package that carries it, if one does."""
    try:
        yield
    except UserError as error:
        if pins is None or not pins.install:
            raise
        remedy = f"{pins.install} (a package that carries it); or {error.remedy}"
        raise UserError(error.what, where=error.where, nearest=error.nearest, remedy=remedy) from error


def _in_package(pins: Published) -> Found | None:
    """The model in its package, each of its pinned files compared; None where the package is not installed."""
    folder = _folder_of(pins.package)
    if folder is None:
        return None
    for file in pins.sha256:
        if not (folder / file).is_file():
            raise _other(pins, folder, f"{file} is not in it")
    _check(folder, pins)
    return Found(folder, f"the package {pins.package.partition('/')[0]}", pins.of.partition("@")[2] or None)


def _folder_of(package: str) -> Path | None:
    """The folder of a package's files; None where it is not installed. The package is found, not imported."""
    module, _, below = package.partition("/")
    spec = importlib.util.find_spec(module) if module else None
    for place in (spec.submodule_search_locations if spec else None) or ():
        if (Path(place) / below).is_dir():
            return Path(place) / below
    return None


def _check(folder: Path, pins: Published | None) -> None:
    """UserError where a file of the folder is not the one that is pinned."""
    for file, digest in (pins.sha256 if pins else {}).items():
        path = folder / file
        if path.is_file():
            about = path.stat()
            read = _digest(path, about.st_size, about.st_mtime_ns)
            if read != digest:
                raise _other(pins, folder, f"{file} has the SHA-256 {read}")


def _other(pins: Published | None, folder: Path, why: str) -> UserError:
    return UserError(
        f"This is not the pinned {pins.of or pins.package if pins else ''}: {why}.",
        where=str(folder),
        remedy="install or fetch it again, or name the folder to take it as it is: backbone.weights=PATH",
    )


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, read once a process as long as it stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

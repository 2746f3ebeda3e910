"""Files that a config names: absolute, and there."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import BYTES, Weights, is_hub_name
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.reads import PATHS, artifact_keys, keys
from transfer_run.experiment.config.references import RUN
from transfer_run.files import user_path
from transfer_run.run_folder import read_description

NAME = re.compile(r"\w[\w .+-]*")
"""Names of sources end up in files' names: none of them leaves its folder."""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
"""NAME or NAME@REVISION of a model of the hub."""


def check_files(values: dict[str, Any], where: Callable[[str], str]) -> None:
    """Refuse data and weights that are not there; paths become absolute, for they are part of the run's identity.

    Args:
        values: the composed config, changed in place.
        where: the place that sets a key, for the message.

    Raises:
        UserError: a file or folder does not exist.
    """
    dataset, backbone = values["dataset"], values["backbone"]
    if str(dataset.get("path")).startswith(RUN):
        _check_artifact(dataset, where)
    elif dataset.get("path"):
        dataset["path"] = _existing(dataset["path"], "dataset.path", where, [])
    if dataset.get("rows") and not dataset["rows"].startswith(RUN):
        dataset["rows"] = _existing(dataset["rows"], "dataset.rows", where, [])
    check_weights(backbone, "backbone.weights", where)
    tokenizer = backbone.get("tokenizer")
    if (
        tokenizer
        and tokenizer != BYTES
        and not tokenizer.startswith(RUN)
        and not (HUB_NAME.fullmatch(tokenizer) and not user_path(tokenizer, where("backbone.tokenizer")).exists())
    ):
        backbone["tokenizer"] = _existing(tokenizer, "backbone.tokenizer", where, [BYTES])
    for group, owner in (("method", values["method"]), ("dataset", dataset)):
        for entry, value in keys(owner, PATHS):
            *parents, leaf = entry.name.split(".")
            key = f"{group}.{entry.name}"
            named = [_named(each, key, where, entry.words) for each in (value if isinstance(value, list) else [value])]
            reduce(dict.__getitem__, parents, owner)[leaf] = named if isinstance(value, list) else named[0]


def check_places(values: dict[str, Any], where: Callable[[str], str]) -> None:
    """As `check_files`, of the places that only a run's own words name: where it writes, and its sources.

    Raises:
        UserError: a place that cannot be one, a source that is no text.
    """
    values["output_dir"] = str(user_path(str(values["output_dir"]), where("output_dir")))
    for name, words in values["sources"].items():
        if not NAME.fullmatch(str(name)):
            raise UserError(
                f"{name!r} is no name of a source.", where=where("sources"), remedy="letters, digits and _ - . + alone"
            )
        if not isinstance(words, str | None):  # null names none, which its reader says
            raise UserError(
                f"sources.{name} must be the words of a run, its folder or its identity, not {words!r}.",
                where=where(f"sources.{name}"),
                remedy=f'sources.{name}="method=full dataset=..."',
            )


FOLDER = "folder"
"""`backbone.architecture=folder`: that of the weights."""


def architecture_of_weights(backbone: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """The settings of the model that the weights are, written out: a plan needs them, and the identity has them.

    Raises:
        UserError: the weights are no folder on this machine, or it says nothing of its model.
    """
    check_weights(backbone, "backbone.weights", where)
    weights = Weights.of(backbone)
    if weights.saved is not None and not read_description(weights.saved).get("library"):
        found: dict[str, Any] = read_description(weights.saved)["backbone"]["architecture"]
        return found
    place = weights.saved or weights.path
    if place is None or not place.is_dir():
        raise UserError(
            "Only a folder says which architecture its weights are of.",
            where=f"backbone.architecture={FOLDER}, backbone.weights={weights}",
            remedy="backbone.weights=PATH with a folder that holds config.json and weights",
        )
    from transfer_run.backbones.weights.settings import folder_architecture  # asks transformers

    return folder_architecture(place.absolute())


def check_weights(backbone: dict[str, Any], key: str, where: Callable[[str], str]) -> None:
    """As `check_files`, of the weights of one backbone, which `key` names."""
    weights = Weights.of(backbone)
    if weights.kind == "random" and backbone.get("weights"):
        backbone["weights"] = str(weights)  # `random:` is `random`
    if weights.kind == "path":
        backbone["weights"] = _existing(weights.words, key, where, ["hub", "random"])


def _check_artifact(dataset: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """`dataset.path=run:WORDS` is for data sets that say which kinds of artifacts they read."""
    if any(entry.name == "path" for entry, _ in artifact_keys(dataset)):
        return
    raise UserError(
        f"dataset={dataset['name']} reads nothing that a run makes.",
        where=where("dataset.path"),
        remedy="name a file or folder, or a data set that says so (about.reads: {path: images})",
    )


def _named(named: Any, key: str, where: Callable[[str], str], words: Sequence[str]) -> Any:
    """A path that exists, absolute; a model of the hub and words that name no file as they are."""
    if not isinstance(named, str) or not named or named in words:
        return named
    if not user_path(named, where(key)).exists() and is_hub_name(named):
        return named
    return _existing(named, key, where, list(words))


def _existing(named: str, key: str, where: Callable[[str], str], words: list[str]) -> str:
    path = user_path(named, where(key)).absolute()
    if path.exists() or (glob.has_magic(named) and glob.glob(str(path), recursive=True)):
        return str(path.parent.resolve() / path.name)
    folder = next(parent for parent in path.parents if parent.is_dir())
    beside = [str(Path(named).parent / entry.name) for entry in path.parent.glob("*")] if folder == path.parent else []
    raise UserError(
        f"{key}={named} does not exist.",
        where=where(key),
        nearest=nearest_names(named, words + beside),
        remedy=f"{folder} exists; name a file or folder in it"
        if folder != path.parent
        else "name a file or folder that exists",
    )

"""Data sets that a data set names, from words to full configs.

dataset.tasks=["digits name=low classes=[0,1,2]", ...]     a data set made of others
dataset.beside.unlabeled="digits batch_size=64"            others that a method reads in every step

The first word names a data set, the others set its keys (without `dataset.`). What they stand for is written into
`dataset.nodes`, and in the place of the words into `dataset.beside`, so that the run's config, and with it the run's
identity, holds every key of every member.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from transfer_run.data.long_tail import OF_GROUP
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry, schema
from transfer_run.experiment.config.about import check_about
from transfer_run.experiment.config.compatibility import phrase
from transfer_run.experiment.config.compatibility import reads as holds
from transfer_run.experiment.config.files import check_files
from transfer_run.experiment.config.own_files import check_own_file
from transfer_run.experiment.config.reads import DATASET, DATASETS, keys
from transfer_run.experiment.config.references import RUN
from transfer_run.files import read_yaml, user_path
from transfer_run.words import named

NAME = re.compile(r"\w[\w .+-]*")
"""Names end up in files' names: none of them leaves its folder."""
Begin = Callable[[dict[str, Any]], dict[str, Any]]


def _length(listed: Any) -> int:
    """`${length:...}` of a config; at least 1, for what is wrong with the list is said of its own key."""
    return max(1, len(listed)) if OmegaConf.is_list(listed) else 1


OmegaConf.register_new_resolver("length", _length, replace=True)


def name_subdatasets(values: dict[str, Any], folders: Sequence[Path]) -> None:
    """Fill `dataset.beside`, and `dataset.nodes` of a data set whose keys name others (`about.reads`).

    Under the last part of the key: of a list, name -> `dataset` node; of a single one its node, or null.

    Raises:
        UserError: words that name no data set, or set a key that it does not have; two tasks of one name.
    """
    dataset = values["dataset"]
    odd = next((name for name in dataset["beside"] if not NAME.fullmatch(str(name)) or not isinstance(name, str)), None)
    if odd is not None:
        raise UserError(
            f"{odd!r} is no name of data beside the run's own.", where="dataset.beside", remedy="letters alone"
        )
    _check_beside(values["method"], dataset["beside"])
    for name, words in dataset["beside"].items():
        dataset["beside"][name] = _member(str(words), f"dataset.beside.{name}", folders, None, _beside)[1]
    for entry, listed in list(keys(dataset, DATASETS)):
        holder, leaf = _node_and_key(dataset, entry.name)
        example = f'dataset.{entry.name}=["digits name=low classes=[0,1]", ...]'
        if not listed:
            raise UserError(f"dataset.{entry.name} names no data set.", where=f"dataset.{entry.name}", remedy=example)
        found: dict[str, Any] = {}
        for number, words in enumerate(listed):
            where = f"dataset.{entry.name}[{number}]"
            name, node = _member(words, where, folders, dataset["path"])
            if (held := holds(node)) != (own := holds(dataset)) and held and own:
                what = (
                    f"dataset={node['name']} holds {phrase(held)}, dataset={dataset['name']} is made of {phrase(own)}."
                )
                raise UserError(what, where=f"{where}: {words}", remedy=f"name data sets of {phrase(own)}")
            if name in found:
                raise UserError(
                    f"Two {leaf} are called {name!r}.",
                    where=f"{where}: {words}",
                    remedy=f"name them: {example}",
                )
            found[name] = node
        dataset["nodes"] = {**dataset["nodes"], leaf: found}
        holder[leaf] = list(found)
    for entry, words in list(keys(dataset, DATASET)):
        holder, leaf = _node_and_key(dataset, entry.name)
        only: dict[str, Any] | None = None
        if words is not None and words not in entry.words:
            where = f"dataset.{entry.name}"
            holder[leaf], only = _member(words, where, folders, dataset["path"], choices=entry.words)
        dataset["nodes"] = {**dataset["nodes"], leaf: only}


def _node_and_key(dataset: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The node that holds a dotted key, and its last part."""
    *parents, leaf = key.split(".")
    return reduce(dict.__getitem__, parents, dataset), leaf


def name_tests(values: dict[str, Any], folders: Sequence[Path]) -> None:
    """Fill `dataset.tests`: the words of every further test set become its `dataset` node.

    Words that name the run's own data set begin from the run's own keys (columns, lengths, prompts), other words from
    the defaults. Where a split has to be cut from one table or folder, all of its rows are for testing.

    Raises:
        UserError: words that name no data set, or one of another form or of other classes than the run's own.
    """
    own = values["dataset"]
    for name, words in (own.get("tests") or {}).items():
        key = f"dataset.tests.{name}"
        where = f"{key}: {words}"
        if not re.fullmatch(r"[\w-]+", str(name)) or not isinstance(words, str) or is_made_of_others(own):
            raise UserError(
                "A data set that is made of others is tested on these alone."
                if is_made_of_others(own)
                else "A test set is a name of letters and digits, and the words of a data set.",
                where=where,
                remedy='dataset.tests={NAME: "image_folder path=FOLDER"}'
                if not is_made_of_others(own)
                else "dataset.tests={}",
            )
        _, node = _member(words, key, folders, None, partial(_as_own, own=own), fixed=("metrics",))
        for fact in ("form", "num_labels", "label_names"):
            if node.get(fact) is not None and own.get(fact) is not None and node[fact] != own[fact]:
                raise UserError(
                    f"The test set's {fact} is {node[fact]}, that of dataset={own['name']} is {own[fact]}.",
                    where=where,
                    remedy="test on a data set that asks the same",
                )
        metrics = [metric for metric in own["metrics"] if metric not in OF_GROUP]  # it has no training rows of its own
        own["tests"][name] = node | {"metrics": metrics or own["metrics"]}


def is_made_of_others(dataset: Mapping[str, Any]) -> bool:
    """Do keys of this data set name others?"""
    return any(True for _ in keys(dataset, DATASETS, DATASET))


NOT_SHARED = ("path", "rows", "tests", "augment", "class_weights", "label_smoothing", "split_shares", "name", "about")
"""Keys of a run's own data set that say nothing of a further test set."""


def _as_own(declared: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What the words of a test set begin from."""
    node = dict(declared)
    if own["name"] == node["name"]:
        node |= {key: copy.deepcopy(own[key]) for key in node if key in own and key not in NOT_SHARED}
    if "split_shares" in node:
        node["split_shares"] = {**node["split_shares"], "validation": 0.0, "test": 1.0}
    return node


def _beside(declared: dict[str, Any]) -> dict[str, Any]:
    """What the words of data beside the run's own begin from: as many rows a batch as that has, and as they are."""
    return declared | {"batch_size": None, "augment": None}


def _check_beside(method: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """What the method reads in every step is named, and nothing else.

    In `about.beside` a name that ends in `?` may be left out, and `*` stands for any others.
    """
    asked = {str(name): str(says) for name, says in ((method.get("about") or {}).get("beside") or {}).items()}
    names = [name.removesuffix("?") for name in asked]
    missing = next((name for name in asked if not name.endswith(("?", "*")) and name not in given), None)
    if missing is not None:
        raise UserError(
            f"method={method['name']} reads data beside the run's own, {asked[missing]}, which are not named.",
            where=f"dataset.beside.{missing}",
            remedy=f"dataset.beside.{missing}='\"DATASET KEY=VALUE\"'",
        )
    unasked = next((name for name in given if not {name, "*"} & set(names)), None)
    if unasked is not None:
        what = f"{', '.join(names)} beside the run's own data" if names else "the run's own data alone"
        raise UserError(
            f"method={method['name']} reads {what}.",
            where=f"dataset.beside.{unasked}",
            nearest=nearest_names(unasked, names) or names,
            remedy="" if names else "leave it out",
        )


def _member(
    words: str,
    key: str,
    folders: Sequence[Path],
    above: str | None,
    begin: Begin | None = None,
    choices: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:
    """The name and the complete `dataset` node that words stand for.

    Args:
        above: the folder that holds one folder a member, by name, for those that have no path of their own.
        begin: the keys that its file declares -> what the words begin from.
        choices: words that may stand in place of a data set's.
        fixed: keys that are those of the run's own data set.
    """
    where = f"{key}: {words}"
    choice, settings = named(words, where, "a data set", "digits classes=[0,1,2]")
    if choice not in registry.names("dataset", folders):
        error = registry.unknown_choice("dataset", choice, folders, where=where)
        raise UserError(error.what, where=where, nearest=[*error.nearest, *nearest_names(choice, choices)])
    content = registry.entry("dataset", choice, folders).content
    check_own_file("dataset", choice, content, folders)
    declared = copy.deepcopy(dict(content["dataset"]))
    _check_settings(settings, fixed, where)
    name = str(settings.pop("name", choice.replace("/", "_")))
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name of a part of the data.",
            where=where,
            remedy="letters, digits, spaces and _ - . + alone",
        )
    if is_made_of_others(declared):
        raise UserError("A data set that is made of others cannot be a part of one.", where=where)
    first = declared if begin is None else begin(declared)
    merged = OmegaConf.create({"dataset": first})
    for path, value in settings.items():
        OmegaConf.update(merged, f"dataset.{path}", value, force_add=True)
    values: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    file = next(iter(registry.find("dataset", choice, folders)), choice)
    check_about(values, lambda path: f"{file}: {path}", folders)
    types = {**_general(), "dataset.batch_size": "int? >= 1"}  # null: that of the run
    schema.check(values, {"dataset": {**first, **declared}}, lambda path: where, types)
    lies_below = above and not above.startswith(RUN) and values["dataset"].get("path", "") is None
    if above and lies_below and (user_path(above, "dataset.path") / name).exists():
        values["dataset"]["path"] = str(Path(above) / name)
    check_files({"dataset": values["dataset"], "backbone": {}, "method": {}}, lambda path: where)
    return name, values["dataset"]


def _check_settings(settings: Mapping[str, Any], fixed: Sequence[str], where: str) -> None:
    """Refuse what words inside words cannot set: keys of the run's own data set, facts, and what another run makes."""
    taken = next((path for path in settings if path.partition(".")[0] in (*fixed, "tests", "beside", "about")), None)
    if taken is not None:
        whose = "a fact that no words set" if taken.startswith("about") else "a key of the run's own data set alone"
        raise UserError(f"{taken} is {whose}.", where=where, remedy="leave it out here")
    made = next((path for path, value in settings.items() if str(value).startswith(RUN)), None)
    if made is not None:
        what = f"Only the run's own data set reads what a run makes, not one that is named here by {made}."
        raise UserError(what, where=where, remedy="carry out that run, and name the folder or file that it made")


def _general() -> Mapping[str, Any]:
    general = read_yaml(registry.config_root() / "options.yaml")
    return {key: option for key, option in general.items() if key.startswith("dataset.")}

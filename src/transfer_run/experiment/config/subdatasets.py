"""A data set made of others: `dataset.tasks=["digits name=low classes=[0,1,2]", ...]`, from words to full configs.

The first word names a data set, the others set its keys (without `dataset.`). What they stand for is written into
`dataset.nodes`, so that the run's config, and with it the run's identity, holds every key of every member.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry, schema
from transfer_run.experiment.config.about import check_about
from transfer_run.experiment.config.files import check_files
from transfer_run.files import read_yaml
from transfer_run.words import named

CHOICES = ("task", "memory", "classes", "reference", "random")
"""Words of `dataset.reference` that name no data set."""

OmegaConf.register_new_resolver("length", len, replace=True)


def name_members(values: dict[str, Any], folders: Sequence[Path]) -> None:
    """Fill `dataset.nodes` of a data set that has such a key; other configs stay as they are.

    `tasks`: name of the task -> its `dataset` node; `images`, `texts`: those of `dataset.reference`, if they name any.

    Raises:
        UserError: words that name no data set, or set a key that it does not have; two tasks of one name.
    """
    dataset = values["dataset"]
    if "nodes" not in dataset:
        return
    tasks: dict[str, Any] = {}
    for number, words in enumerate(dataset["tasks"]):
        name, node = _member(words, f"dataset.tasks[{number}]", folders, dataset["path"])
        if name in tasks:
            raise UserError(
                f"Two tasks are called {name!r}.",
                where=f"dataset.tasks[{number}]: {words}",
                remedy='name them: dataset.tasks=["digits name=low classes=[0,1]", ...]',
            )
        tasks[name] = node
    dataset["nodes"], dataset["tasks"] = {"tasks": tasks, "images": None, "texts": None}, list(tasks)
    for kind in ("images", "texts"):
        words = dataset["reference"][kind]
        if words is not None and words not in CHOICES:
            name, dataset["nodes"][kind] = _member(words, f"dataset.reference.{kind}", folders, dataset["path"])
            dataset["reference"][kind] = name


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
        if not re.fullmatch(r"[\w-]+", str(name)) or not isinstance(words, str) or "nodes" in own:
            raise UserError(
                "A sequence is tested on its own tasks alone."
                if "nodes" in own
                else "A test set is a name of letters and digits, and the words of a data set.",
                where=where,
                remedy='dataset.tests={NAME: "image_folder path=FOLDER"}' if "nodes" not in own else "dataset.tests={}",
            )
        _, node = _member(words, key, folders, None, own)
        for fact in ("form", "num_labels", "label_names"):
            if node.get(fact) is not None and own.get(fact) is not None and node[fact] != own[fact]:
                raise UserError(
                    f"The test set's {fact} is {node[fact]}, that of dataset={own['name']} is {own[fact]}.",
                    where=where,
                    remedy="test on a data set that asks the same",
                )
        own["tests"][name] = node | {"metrics": own["metrics"]}


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


def _member(
    words: str, key: str, folders: Sequence[Path], above: str | None, own: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The name and the complete `dataset` node that words stand for.

    Args:
        above: the folder that holds one folder a member, by name, for those that have no path of their own.
        own: the run's own data set, of which this is a further test set.
    """
    where = f"{key}: {words}"
    choice, settings = named(words, where, "a data set", "digits classes=[0,1,2]")
    if choice not in registry.names("dataset", folders):
        error = registry.unknown_choice("dataset", choice, folders, where=where)
        raise UserError(error.what, where=where, nearest=[*error.nearest, *nearest_names(choice, CHOICES)])
    declared = copy.deepcopy(dict(registry.entry("dataset", choice, folders).content["dataset"]))
    name = str(settings.pop("name", choice.replace("/", "_")))
    if "nodes" in declared:
        raise UserError("A sequence cannot be a task of another one.", where=where)
    merged = OmegaConf.create({"dataset": declared if own is None else _as_own(declared, own)})
    for path, value in settings.items():
        OmegaConf.update(merged, f"dataset.{path}", value, force_add=True)
    values: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    check_about(values, lambda path: f"{next(iter(registry.find('dataset', choice, folders)), choice)}: {path}")
    schema.check(values, {"dataset": declared}, lambda path: where, _general())
    if above and values["dataset"].get("path", "") is None and (Path(above).expanduser() / name).exists():
        values["dataset"]["path"] = str(Path(above) / name)
    check_files({"dataset": values["dataset"], "backbone": {}, "method": {}}, lambda path: where)
    return name, values["dataset"]


def _general() -> Mapping[str, Any]:
    general = read_yaml(registry.config_root() / "options.yaml")
    return {key: option for key, option in general.items() if key.startswith("dataset.")}

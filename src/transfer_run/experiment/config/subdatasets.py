"""A data set made of others: `dataset.tasks=["digits name=low classes=[0,1,2]", ...]`, from words to full configs.

The first word names a data set, the others set its keys (without `dataset.`). What they stand for is written into
`dataset.nodes`, so that the run's config, and with it the run's identity, holds every key of every member.
"""

from __future__ import annotations

import copy
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


def _member(words: str, key: str, folders: Sequence[Path], above: str | None) -> tuple[str, dict[str, Any]]:
    """The name and the complete `dataset` node that words stand for.

    Args:
        above: the folder that holds one folder a member, by name, for those that have no path of their own.
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
    merged = OmegaConf.create({"dataset": declared})
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

"""Methods that a method wraps, from words to full configs: `method.around="lora rank=4"` (`about.reads`).

The words' complete `method` node takes their place, so that the run's config, and with it its identity, holds every key
of the method inside. What its file sets of the optimizer and the trainer holds for the run, where no word and no
experiment says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.config import registry, schema
from transfer_run.experiment.config.about import check_about
from transfer_run.experiment.config.compatibility import check_fit
from transfer_run.experiment.config.reads import METHOD, keys, reads, value_at
from transfer_run.words import named

EXAMPLE = "lora rank=4"
FITTED = ("tune", "stage")
"""Shapes of the methods that can be wrapped: those that are fitted with one loss."""


def name_submethods(
    values: dict[str, Any], folders: Sequence[Path], given: Sequence[str], contents: Mapping[str, Any]
) -> None:
    """Put the nodes of the methods that keys of the run's method name in the place of their words.

    Args:
        values: the composed config, changed in place.
        given: the run's words.
        contents: what the file of every choice sets, by GROUP=NAME.

    Raises:
        UserError: words that name no method, or one that cannot be wrapped or does not fit backbone and data set.
    """
    for entry, words in list(keys(values["method"], METHOD)):
        if words is None:
            continue
        *parents, leaf = entry.name.split(".")
        key = f"method.{entry.name}"
        if not isinstance(words, str):
            raise UserError(f"{key} is the words of a method.", where=key, remedy=f'{key}="{EXAMPLE}"')
        node, content = _node(words, f"{key}: {words}", folders)
        check_fit({**values, "method": node}, folders)
        reduce(dict.__getitem__, parents, values["method"])[leaf] = node
        _take_settings(values, content, partial(_said, given, contents), f"{key}: {words}")


def _said(given: Sequence[str], contents: Mapping[str, Any], key: str) -> bool:
    """Does a word or an experiment set this dotted key, or choose this group?"""
    names = [word.lstrip("+~").partition("=")[0] for word in given]
    below = any(key == name or ("." in name and key.startswith(f"{name}.")) for name in names)
    return below or any(schema.has(each, key) for choice, each in contents.items() if choice.startswith("experiment="))


def _node(words: str, where: str, folders: Sequence[Path]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The complete `method` node that words stand for, and all that its file sets."""
    name, settings = named(words, where, "a method", EXAMPLE)
    if name not in registry.names("method", folders):
        raise registry.unknown_choice("method", name, folders, where=where)
    content = copy.deepcopy(dict(registry.entry("method", name, folders).content))
    declared = content["method"]
    merged = OmegaConf.create({"method": declared})
    for path, value in settings.items():
        OmegaConf.update(merged, f"method.{path}", value, force_add=True)
    found: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    about = declared["about"]
    if found["method"].get("about") != about:
        raise UserError("method.about is a fact of its file: no words set it.", where=where, remedy="leave it out")
    check_about(found, lambda path: where, folders)
    schema.check(found, {"method": declared}, lambda path: where)
    if about.get("shape") not in FITTED or _reads_others(found["method"]) or about.get("beside"):
        raise UserError(
            f"method={name} cannot be wrapped: it is more than a network that is fitted to one data set.",
            where=where,
            remedy=f"name a method of tuning or side-tuning, as {EXAMPLE!r}",
        )
    return found["method"], content


def _reads_others(node: Mapping[str, Any]) -> bool:
    """Would it read runs or files, or wrap a method itself? Only what the run's own method reads is in the identity."""
    return any(
        METHOD in entry.kinds or value_at(node, entry.name) not in (None, *entry.words)
        if entry.is_key_of(node)
        else bool(entry.method) or (not entry.optional and entry.read_by(node))
        for entry in reads(node)
    )


def _take_settings(values: dict[str, Any], content: Mapping[str, Any], said: Callable[[str], bool], where: str) -> None:
    chosen = (content.get("optimizer") or {}).get("name", values["optimizer"]["name"])
    if chosen != values["optimizer"]["name"] and not said("optimizer"):
        raise UserError(
            f"The method inside is trained with optimizer={chosen}, the run with {values['optimizer']['name']}.",
            where=where,
            remedy=f"add optimizer={chosen}, or name the one that you want",
        )
    for group in ("optimizer", "trainer"):
        for key, value in (content.get(group) or {}).items():
            if key in values[group] and key not in ("name", "about") and not said(f"{group}.{key}"):
                values[group][key] = value

"""The runs that words with several values ask to plan: lists, Hydra's sweeps, and names with `*` and `?`.

method='*' backbone=bert-base-uncased        every method that adapts a model; those that do not go with the
                                             backbone are left out, which is said
method='peft/*',lora hardware.precision=32-true,bf16-mixed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import Composer
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.words import parse
from transfer_run.memory.budget import room
from transfer_run.sweeps.asked import key_of, plain

WILD = ("method", "backbone", "dataset", "optimizer", "hardware")
"""Groups whose choices may be named with `*` and `?`."""
ADAPTS = ("tune", "stage", "distil")
"""Shapes of methods (`about.shape`) that a `*` means; the others score, combine or cut down what is trained."""


@dataclass(frozen=True)
class Candidate:
    """One of the runs; `name` is what tells it from the others: `lora`, or `lora hardware.precision=bf16-mixed`."""

    name: str
    run: Run


@dataclass(frozen=True)
class LeftOut:
    """One of the runs that cannot be planned, and why."""

    name: str
    why: str


def several(words: Sequence[str]) -> bool:
    """Do the words ask for more than one run?"""
    return any(_wild(word) or parse(word).is_sweep_override() for word in words)


def candidates(composer: Composer, words: Sequence[str]) -> tuple[list[Candidate], list[LeftOut]]:
    """All combinations of the words, in order.

    Raises:
        UserError: no name is meant by a `*`, none of the runs can be planned, or one that the words name outright.
    """
    expanded = [_expanded(word, composer) for word in words]
    named = not any(_wild(word) for word in words)
    axes = [key_of(word) for word in expanded if parse(word).is_sweep_override()]
    found: list[Candidate] = []
    left: list[LeftOut] = []
    first: UserError | None = None
    for job in composer.jobs(expanded):
        name = _name(job, axes)
        try:
            run = composer.compose(job)
            room(run.config["plan"], run.config["hardware"]["accelerator"])
            shape = run.config["method"]["about"]["shape"]
            if named or shape in ADAPTS:
                found.append(Candidate(name, run))
            else:
                left.append(LeftOut(name, f"its shape is {shape}: it adapts no model by itself"))
        except UserError as error:
            if named or error.where.startswith("plan."):
                raise
            first = first or error
            left.append(LeftOut(name, error.what))
    if not found:
        raise first or UserError(
            "None of these methods adapts a model by itself.",
            where=" ".join(words),
            remedy="name one of them outright, with its sources",
        )
    return found, left


def _wild(word: str) -> bool:
    key, _, value = word.partition("=")
    return key in WILD and any(mark in value for mark in "*?") and "(" not in value


def _expanded(word: str, composer: Composer) -> str:
    """`method=peft/*,lora` with the names that are meant."""
    if not _wild(word):
        return word
    key, _, value = word.partition("=")
    known, chosen = registry.names(key, composer.folders), []
    for part in value.split(","):
        meant = [name for name in known if fnmatchcase(name, part)] if any(mark in part for mark in "*?") else [part]
        if not meant:
            raise UserError(
                f"No {key} is named like {part!r}.",
                where=word,
                nearest=nearest_names(part.replace("*", "").replace("?", ""), known),
                remedy=f"`transfer-list {next(kind for kind, of in registry.KINDS.items() if of == key)}` names them",
            )
        chosen += meant
    return f"{key}={','.join(dict.fromkeys(chosen))}"


def _name(job: Sequence[str], axes: Sequence[str]) -> str:
    parts = [word for word in plain(job) if key_of(word) in axes]
    return " ".join(word.removeprefix("method=") for word in parts)

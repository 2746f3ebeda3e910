"""`stages`: a list of runs, each of which goes on from the model of the one before it.

    transfer-run method=full backbone=bert_tiny seed=1 'stages=[[dataset=A,trainer.max_epochs=1],[dataset=B]]'

Every stage is a run of its own: the words of the command line, and over them those of the stage. The last stage is
the run that the command asks for; the one before it is its source, named by `backbone.weights=stage:WORDS`, and so
on down the list. A stage is a list of words, a mapping (`{dataset: A, trainer.max_epochs: 1}`) or one text of words.

What a stage hands on: see `experiment/handover.py`. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transfer_run.backbones.weights.names import Weights
from transfer_run.errors import UserError
from transfer_run.experiment.config.reads import reads
from transfer_run.words import joined, pair, quoted, split

KEY = "stages"
OF_ONE_RUN = ("force", "dry_run", "export", "output_dir", "plan", "sweep", "hydra", KEY)
"""Keys that the run asked for has for itself: earlier stages run where it runs, and are never forced."""

_EXAMPLE = "stages=[[dataset=A,trainer.max_epochs=1],[dataset=B]]"


def stage_words(stages: Any) -> list[list[str]]:
    """The words of each stage, from a config's `stages`.

    Raises:
        UserError: it is no list of stages.
    """
    if not isinstance(stages, list):
        raise UserError(f"stages must be a list of runs, not {stages!r}.", where=KEY, remedy=_EXAMPLE)
    return [_words(stage, number) for number, stage in enumerate(stages, 1)]


def _words(stage: Any, number: int) -> list[str]:
    if isinstance(stage, str):
        words = split(stage, f"{KEY}, stage {number}", _EXAMPLE)
    elif isinstance(stage, Mapping):
        words = list(_flat(stage))
    elif isinstance(stage, list) and all(isinstance(word, str) for word in stage):
        words = list(stage)
    else:
        raise UserError(f"Stage {number} is no list of words.", where=f"{KEY}: {stage}", remedy=_EXAMPLE)
    for word in words:
        if not word.startswith("~"):
            pair(word, f"{KEY}, stage {number}", _EXAMPLE)
        if _key(word).partition(".")[0] in OF_ONE_RUN:
            raise UserError(
                f"{_key(word)} cannot be set for one stage.",
                where=f"{KEY}, stage {number}: {word}",
                remedy=f"set it for all: put {word} beside stages",
            )
    return words


def _flat(stage: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in stage.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_written(value)}"


def _written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else str(value)


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def last_stage(words: Sequence[str], stages: Sequence[Sequence[str]]) -> list[str]:
    """The words of the last stage's run: those that all share without what the stage says itself, then the stage's.

    `stages` stays among them: it is the record of how the run came about, and no part of its identity.
    """
    own = {_key(word) for word in stages[-1]}
    shared = [word for word in words if _key(word) not in {*own, KEY}]
    return [*shared, *stages[-1], written(stages)]


def weights_of(words: Sequence[str], stages: Sequence[Sequence[str]]) -> Weights | None:
    """`stage:WORDS`, the run before the last stage; None where there is none.

    Raises:
        UserError: a later stage names weights of its own.
    """
    if len(stages) < 2:
        return None
    for number, stage in enumerate(stages[1:], 2):
        if any(_key(word) == "backbone.weights" for word in stage):
            raise UserError(
                f"Stage {number} names weights of its own, but it starts from the stage before it.",
                where=f"{KEY}, stage {number}",
                remedy="name them in the first stage, or beside stages",
            )
    shared = [word.lstrip("+") for word in words if _key(word).partition(".")[0] not in OF_ONE_RUN]
    return Weights("stage", joined([*shared, written(stages[:-1])]))


def start_from(values: dict[str, Any], weights: Weights) -> None:
    """Put the stage before as the weights of a composed run, in place; its tokenizer stays that of the first weights.

    A method that says so (`about.reads: {NAME: model of the stage before}`) has it as that source.

    Raises:
        UserError: the run's method reads no weights.
    """
    method, backbone = values["method"], values["backbone"]
    about = method.get("about", {})
    name = next((entry.name for entry in reads(method) if entry.stage), None)
    if name is not None:  # the method reads the whole model of the stage before
        values["sources"] = {**values["sources"], name: weights.words}
        return
    if not about.get("pretrained", True) or values["dataset"].get("form") == "none":
        what = f"method={method['name']}" if values["dataset"].get("form") != "none" else "dataset=none"
        raise UserError(f"{what} does not go on from another stage.", where=KEY, remedy="make it the first stage")
    first = Weights.of(backbone)
    if not backbone.get("tokenizer"):
        if first.kind == "hub":
            at = f"@{backbone['revision']}" if backbone.get("revision") else ""
            backbone["tokenizer"] = f"{backbone['hub']}{at}"
        elif first.kind == "path":
            backbone["tokenizer"] = first.words
    backbone["weights"] = str(weights)


def written(stages: Sequence[Sequence[str]]) -> str:
    """`stages=[...]` as a word that Hydra reads."""
    lists = (f"[{','.join(map(quoted, stage))}]" for stage in stages)
    return f"{KEY}=[{','.join(lists)}]"

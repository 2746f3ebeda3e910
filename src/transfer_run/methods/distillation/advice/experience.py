"""Finished distillations as rows of a table: the pipeline that was chosen, what it was chosen for, how much it gave."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.methods.distillation.objectives.information import BOUNDS
from transfer_run.run_folder import read_config, read_result

CHOICES = (
    "kd.hard_weight", "kd.soft_weight", "kd.soft", "kd.temperature", "inter.mapping", "inter.feature", "inter.loss",
    "inter.alpha", "inter.weight", "inter.tokens", "inter.first_share", "mi.critic", "augment",
)  # fmt: skip
"""Keys of method=distiller that make a pipeline."""
Row = dict[str, float | str]


@dataclass(frozen=True)
class Experience:
    """One finished run: its pipeline with the facts of its data and models, and the distillation ratio it reached."""

    dataset: str
    row: Row
    ratio: float


def experiences(runs: Sequence[Path]) -> list[Experience]:
    """Of finished runs of method=distiller those that know their ratio.

    A run knows it if it had `sources.baseline` beside `sources.teacher`, and the two scores differ.
    """
    return [found for run in runs if (found := _read(run)) is not None]


def _read(run: Path) -> Experience | None:
    result = read_result(run) or {}
    if result.get("method") != "distiller":
        return None
    facts = dict(result.get("extra", {}).get("distillation") or {})
    ratio = facts.pop("ratio", None)
    if ratio is None:
        return None
    return Experience(str(result["dataset"]), {**pipeline(read_config(run)["method"]), **_plain(facts)}, float(ratio))


def pipeline(method: Mapping[str, Any]) -> Row:
    """The choices of a composed `method` node that have an effect; one pipeline in two spellings gives one row."""
    chosen = {key: _at(method, key) for key in CHOICES}
    if chosen["inter.mapping"] == "none" or not chosen["inter.weight"]:
        chosen = {k: v for k, v in chosen.items() if not k.startswith(("inter.", "mi."))} | {"inter.mapping": "none"}
    elif chosen["inter.loss"] not in BOUNDS:
        del chosen["mi.critic"]
    if chosen.get("inter.loss") != "mi":
        chosen.pop("inter.alpha", None)
    if not chosen["kd.soft_weight"]:
        del chosen["kd.soft"], chosen["kd.temperature"]
    return _plain(chosen)


def untried(row: Row, runs: Sequence[Experience]) -> list[str]:
    """What no run has had of a pipeline's choices, as words: a regressor knows nothing of it.

    Numbers too count only where they were tried: a forest says the same of a number as of the nearest one it saw.
    """
    return [
        f"{key}={value if isinstance(value, str) else f'{value:g}'}"
        for key, value in row.items()
        if key in CHOICES and all(run.row.get(key) != value for run in runs)
    ]


def _at(node: Mapping[str, Any], key: str) -> Any:
    value: Any = node
    for part in key.split("."):
        value = value[part]
    return value


def _plain(row: Mapping[str, Any]) -> Row:
    return {k: v if isinstance(v, str) else float(v) for k, v in row.items() if v is not None}


def candidates(space: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[dict[str, Any], Row]]:
    """Every pipeline of a search space once: what differs from the defaults, by dotted key, and its row.

    Args:
        space: values to try, nested as the method's keys are: `{inter: {loss: [mse, mi]}, augment: [none, mixup]}`.
        defaults: the `method` node that the values are set in.
    """
    axes = list(_axes(space))
    found: dict[tuple[tuple[str, float | str], ...], tuple[dict[str, Any], Row]] = {}
    for values in itertools.product(*(values for _, values in axes)):
        settings = dict(zip((key for key, _ in axes), values, strict=True))
        row = pipeline(_with(defaults, settings))
        effective = {key: value for key, value in settings.items() if key in row}
        found.setdefault(tuple(sorted(row.items())), (effective, row))
    return list(found.values())


def _axes(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    for key, value in space.items():
        if isinstance(value, Mapping):
            yield from _axes(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, list | tuple) else [value]


def _with(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in defaults.items()}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return changed

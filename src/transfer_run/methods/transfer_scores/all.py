"""From features and labels to every score asked for, or the reason why one cannot be had."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfer_run.methods.transfer_scores.class_entropy import class_entropies, conditional_entropy
from transfer_run.methods.transfer_scores.classes import balanced
from transfer_run.methods.transfer_scores.gbc import gbc
from transfer_run.methods.transfer_scores.hscore import hscore, hscore_reg
from transfer_run.methods.transfer_scores.leep import leep, nce
from transfer_run.methods.transfer_scores.lfc import lfc
from transfer_run.methods.transfer_scores.logme import logme, logme_regression
from transfer_run.methods.transfer_scores.parc import parc
from transfer_run.methods.transfer_scores.transrate import transrate

Settings = Mapping[str, Mapping[str, Any]]


@dataclass
class Scored:
    """The scores of one backbone or layer.

    Attributes:
        values: by the score's name; higher is better in all.
        skipped: why a score is missing, by its name.
        seconds: wall time of each score.
        floored: share of TMI's distances that lay below its floor; None where TMI was not asked for.
    """

    values: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    floored: float | None = None


class Skip(Exception):
    """A score cannot be had from what there is; the message says why."""


@dataclass
class Material:
    """What the scores are made from: features (N, D), labels (N,), source probabilities (N, S) or None."""

    features: NDArray[np.float64]
    labels: NDArray[Any]
    source: NDArray[np.float64] | None
    floored: float | None = None

    def probabilities(self) -> NDArray[np.float64]:
        if self.source is None:
            raise Skip("the weights came without a classifier for their source classes")
        return self.source


def _tmi(material: Material, *, divide_by_classes: bool, **settings: Any) -> float:
    found = class_entropies(material.features, material.labels, **settings)
    material.floored = found.floored
    return conditional_entropy(found, divide_by_classes=divide_by_classes)


def _parc(material: Material, *, samples: int | None, **settings: Any) -> float:
    rows = slice(None) if samples is None else balanced(material.labels, samples)
    return parc(material.features[rows], material.labels[rows], **settings)


Score = Callable[..., float]


def _plain(function: Score) -> Score:
    def score(material: Material, **settings: Any) -> float:
        return function(material.features, material.labels, **settings)

    return score


SCORES: dict[str, Score] = {
    "tmi": _tmi,
    "logme": _plain(logme),
    "leep": lambda material: leep(material.probabilities(), material.labels),
    "nce": lambda material: nce(material.probabilities().argmax(1), material.labels),
    "hscore": _plain(hscore),
    "hscore_reg": _plain(hscore_reg),
    "gbc": _plain(gbc),
    "transrate": _plain(transrate),
    "parc": _parc,
    "lfc": _plain(lfc),
}
OF_SOURCE = ("leep", "nce")  # they read the source classifier, not the features: the same for every layer
REGRESSION: dict[str, Score] = {"logme": _plain(logme_regression)}


def score_all(material: Material, names: Sequence[str], settings: Settings) -> Scored:
    """Every score of `names`, each timed; one that is not defined here is skipped with its reason.

    Args:
        names: of `SCORES`.
        settings: keyword arguments of the scores by their names.
    """
    table = REGRESSION if material.labels.dtype.kind == "f" else SCORES
    scored = Scored()
    for name in names:
        begin = time.perf_counter()
        try:
            if name not in table:
                raise Skip("class labels are needed, and this is a regression")
            with np.errstate(divide="ignore", invalid="ignore"):
                value = table[name](material, **settings.get(name, {}))
            if not np.isfinite(value):
                raise Skip("not finite on these features")
        except Skip as reason:
            scored.skipped[name] = str(reason)
            continue
        scored.values[name] = float(value)
        scored.seconds[name] = round(time.perf_counter() - begin, 4)
    scored.floored = material.floored
    return scored

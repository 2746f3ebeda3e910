"""From a zoo's answers to labelled target images to the weight of each of its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfer_run.errors import UserError
from transfer_run.methods.transfer_scores import alike
from transfer_run.methods.transfer_scores.classes import Array, Labels, one_hot
from transfer_run.methods.transfer_scores.hscore import hscore_reg
from transfer_run.methods.transfer_scores.leep import leep, nce
from transfer_run.methods.transfer_scores.parc import parc

RANKING = ("leep", "nce")
"""Scores that are never positive: they order sources, and are no weights."""
TO_REFERENCE = ("rsa",)
"""Scores that compare with the features of a model that knows the target."""


@dataclass(frozen=True)
class Probe:
    """What one model makes of N labelled samples: features (N, D), probabilities (N, C_s) of its own classes."""

    features: Array
    probabilities: Array
    labels: Labels
    reference: Array | None = None

    @property
    def compared(self) -> Array:
        """The features of the reference, or the labels themselves."""
        return one_hot(self.labels) if self.reference is None else self.reference


METRICS: dict[str, Callable[[Probe, int | None], float]] = {
    "parc": lambda probe, pca: parc(probe.features, probe.labels, pca=pca),
    "parc_released": lambda probe, pca: parc(probe.features, probe.labels, pca=pca, ties=False),
    "rsa": lambda probe, pca: alike.rsa(probe.features, probe.compared, pca=pca),
    "cka": lambda probe, pca: alike.cka(probe.features, probe.compared),
    "dds": lambda probe, pca: alike.dds(probe.features, probe.compared, pca=pca),
    "knn": lambda probe, pca: alike.neighbour(probe.features, probe.labels),
    "logistic": lambda probe, pca: alike.logistic(probe.features, probe.labels),
    "leep": lambda probe, pca: leep(probe.probabilities, probe.labels),
    "nce": lambda probe, pca: nce(probe.probabilities.argmax(1), probe.labels),
    "hscore": lambda probe, pca: hscore_reg(probe.features, probe.labels),
}


def similarity(metric: str, probe: Probe, pca: int | None) -> float:
    """How alike a source is to the target.

    Raises:
        UserError: the samples are of one class, so nothing can be told.
    """
    if len(np.unique(probe.labels)) < 2:
        raise UserError(
            "All labelled samples that sources are compared on are of one class.",
            where="method.similarity.probe, method.kept_labels.fraction",
            remedy="more labelled samples",
        )
    return METRICS[metric](probe, pca)


def weights(found: Sequence[float], *, nearest: bool, power: float) -> NDArray[np.float64]:
    """alpha (S,), sums to 1: rho^power over its sum, negative rho as 0; or 1 for the largest and 0 for the others.

    Raises:
        UserError: no source is alike at all, so they cannot be weighed.
    """
    rho = np.asarray(found, dtype=np.float64)
    if nearest:
        return np.eye(len(rho))[int(rho.argmax())]
    if power == 0:
        return np.full(len(rho), 1 / len(rho))
    rho = rho.clip(min=0)
    if rho.max() == 0:
        raise UserError(
            "No source is alike to the target: all similarities are 0 or less.",
            where="method.similarity",
            remedy="method.variant=nearest takes the least unlike one, method.similarity.power=0 all alike",
        )
    raised = (rho / rho.max()) ** power
    return np.asarray(raised / raised.sum())


def stratified(labels: Labels, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of the rows (N,) keep their label: this share of every class, at least one of each; -100 has none."""
    kept, draw = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        kept[draw.permutation(rows)[: max(1, round(fraction * len(rows)))]] = True
    return kept

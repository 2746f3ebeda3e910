"""Which rows train, validate and test. Never a matter of the run's seed: every run tests on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from transfer_run.errors import UserError

SPLITS = ("train", "validation", "test")


def shuffled(count: int, seed: int = 42) -> list[int]:
    """0 to count - 1 in the order of `torch.randperm` with a generator of `seed` (42 as in the LST paper's code)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def stratified_parts(labels: np.ndarray, shares: Sequence[float], seed: int = 42) -> list[list[int]]:
    """Disjoint parts of all rows with `shares` of each class, rows in ascending order; the first part takes the rest.

    A class with fewer rows than parts fills the first ones. The seed is fixed: every run tests on the same rows.
    """
    parts: list[list[int]] = [[] for _ in shares]
    for value in np.unique(labels):
        rows = np.flatnonzero(labels == value)
        rows = rows[shuffled(len(rows), seed)]
        sizes = [round(share * len(rows)) for share in shares[1:]]
        stops = np.cumsum([max(len(rows) - sum(sizes), 0), *sizes])
        for part, piece in zip(parts, np.split(rows, stops[:-1]), strict=True):
            part.extend(piece.tolist())
    return [sorted(part) for part in parts]


def completed(
    labels: Mapping[str, np.ndarray], shares: Mapping[str, float], where: str
) -> dict[str, tuple[str, list[int]]]:
    """Train, validation and test as (split they come from, its rows); what is missing is taken from train.

    A share of 0 makes up for nothing: there is then no such split. With `test: 1` all rows are for testing, and a data
    set that has a test split alone will do.

    Args:
        labels: labels of the splits that there are, to keep the classes' shares.
        shares: `validation` and `test`: the part of train that makes up for a missing one.
        where: the data, for an error.

    Raises:
        UserError: there is no training split.
    """
    if shares["test"] == 1 and "test" in labels:
        return {"test": ("test", list(range(len(labels["test"]))))}
    if "train" not in labels:
        raise UserError(
            "There is no training split.",
            where=f"{where}, which has {', '.join(labels)}",
            remedy="name its file or folder train",
        )
    missing = [name for name in ("validation", "test") if name not in labels]
    parts = stratified_parts(labels["train"], [1.0, *(shares[name] for name in missing)])
    taken = {name: ("train", rows) for name, rows in zip(["train", *missing], parts, strict=True)}
    given = {name: (name, list(range(len(labels[name])))) for name in SPLITS if name in labels}
    unasked = {name for name in missing if shares[name] == 0} | ({"train"} if shares["test"] == 1 else set())
    return {name: taken.get(name) or given[name] for name in SPLITS if name not in unasked}

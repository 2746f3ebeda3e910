"""Which rows train, validate and test, what they are standardised by, and the windows that are cut out of them.

    rows   0 ......................... a .............. b .............. c
    train  [past T | future H] ─▶ by one step ─▶
    validation                   [past T | ─── a: the first future step
    test                                          [past T | ─── b

Validation and test also get the T rows before them as past. Everything is standardised by mean and standard deviation
of the training rows, per channel, as forecasting papers score it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from transfer_run.data.rows.splits import SPLITS
from transfer_run.errors import UserError


@dataclass(frozen=True)
class Part:
    """Rows [first, last) of a series, out of which a split's windows are cut; `first` is the oldest past row."""

    first: int
    last: int

    def windows(self, past: int, future: int) -> int:
        return max(0, self.last - self.first - past - future + 1)


@dataclass(frozen=True)
class Scaler:
    """x -> (x - mean) / std, per channel; a constant channel keeps its scale, as in scikit-learn.

    Attributes:
        mean, std: (channels,), of what was measured (NaN left out); std is that of all rows (divided by n).
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Scaler:
        std = np.nanstd(rows, 0)
        return cls(np.nanmean(rows, 0), np.where(std > 0, std, 1.0))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) / self.std


def split_sizes(rows: int, given: Mapping[str, int] | None, shares: Mapping[str, float], where: str) -> dict[str, int]:
    """Rows of train, validation and test, in this order from the first row on.

    Args:
        given: `dataset.split_rows`, as benchmarks fix it; rows behind them are left out.
        shares: `dataset.split_shares` of validation and test; both are rounded down, validation takes what is over.

    Raises:
        UserError: there are fewer rows than `given` asks, or shares of one and more.
    """
    if given:
        sizes = {name: int(given[name]) for name in SPLITS}
        if sum(sizes.values()) > rows:
            raise UserError(
                f"The data have {rows} rows, dataset.split_rows asks for {sum(sizes.values())}.",
                where=where,
                remedy="dataset.split_rows=null and dataset.split_shares, or the whole file",
            )
        return sizes
    rest = round(1 - shares["validation"] - shares["test"], 9)
    if rest <= 0:
        raise UserError(
            "Validation and test leave nothing to train on.",
            where="dataset.split_shares",
            remedy="dataset.split_shares.validation=0.1 dataset.split_shares.test=0.2",
        )
    train, test = int(rest * rows), int(round(shares["test"], 9) * rows)
    return {"train": train, "validation": rows - train - test, "test": test}


def parts(sizes: Mapping[str, int], past: int) -> dict[str, Part]:
    """The rows of each split, those before it included that its first window has as past; none of no rows."""
    begin, found = 0, {}
    for name in SPLITS:
        if sizes[name]:
            found[name] = Part(begin if name == "train" else max(0, begin - past), begin + sizes[name])
        begin += sizes[name]
    return found


def few_shot(part: Part, past: int, fraction: float | None, location: str) -> Part:
    """The last, or first, int(fraction (rows - T)) + T of the training rows; all of them without a fraction."""
    if fraction is None:
        return part
    rows = part.last - part.first
    kept = int(round(fraction * (rows - past), 9)) + past
    return Part(part.last - kept, part.last) if location == "last" else Part(part.first, part.first + kept)


def check_windows(found: Mapping[str, Part], past: int, future: int, where: str) -> None:
    """Raises UserError for a split whose rows hold no window."""
    for name, part in found.items():
        if part.windows(past, future) == 0:
            raise UserError(
                f"The {part.last - part.first} rows of {name} hold no window: {past} past steps (of the backbone) and "
                f"{future} to forecast.",
                where=where,
                remedy="more rows or a larger share, a smaller dataset.horizon, or a backbone that reads less",
            )

"""Times and equal steps: what a table of measurements must be before windows can be cut out of it.

Nothing is guessed. Times are ISO 8601 or of the format that is named; steps that differ and values that are missing are
refused, unless `dataset.time_step` and `dataset.gaps` say what to make of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from transfer_run.errors import UserError

ROWS = "rows"
"""`dataset.time_step=rows`: each row is a step, whatever lies between the times."""

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
TOKENS = {60: 1, 120: 2, 300: 3, 600: 4, 900: 5, 1800: 6, 3600: 7, 86400: 8, 604800: 9}
"""The number by which the resolution prefix of Tiny Time Mixers knows a step in seconds; 0: any other."""

Locate = Callable[[int], str]
"""Where a row's time stands, for an error's `where`."""


@dataclass(frozen=True)
class Regular:
    """A series on equal steps.

    Attributes:
        values: (rows, channels) float64; NaN where nothing was measured.
        start: time of the first row in seconds since 1970 (UTC where the table names a zone); None: not known.
        step: seconds from row to row; None: a row is a step.
    """

    values: np.ndarray
    start: float | None
    step: float | None

    @property
    def token(self) -> int:
        """Number of the step's length in `TOKENS`."""
        return TOKENS.get(round(self.step), 0) if self.step else 0


def parsed_step(step: str) -> float:
    """`15min`, `1h`, `2d` in seconds.

    Raises:
        UserError: it is neither.
    """
    match = re.fullmatch(r"(\d+)\s*([a-z]+)", step)
    if match is None or match[2] not in UNITS or int(match[1]) == 0:
        raise UserError(
            f"{step!r} is no step of time.",
            where="dataset.time_step",
            nearest=["1h", "15min", ROWS],
            remedy=f"a number and one of {', '.join(UNITS)}, or {ROWS}",
        )
    return float(int(match[1]) * UNITS[match[2]])


def parsed_times(texts: Sequence[str], form: str | None, locate: Locate) -> np.ndarray:
    """Seconds since 1970 of each row, (rows,) float64; a time without a zone is taken as it stands.

    Args:
        form: as of `datetime.strptime`; None: ISO 8601.

    Raises:
        UserError: a text that is no such time, times with a zone beside times without, or times that do not rise.
    """
    seconds, zoned = np.empty(len(texts)), set()
    for row, text in enumerate(texts):
        try:
            when = datetime.fromisoformat(text.strip()) if form is None else datetime.strptime(text.strip(), form)
        except ValueError as error:
            raise UserError(
                f"{text[:40]!r} is no time" + (" in ISO 8601." if form is None else f" of the form {form!r}."),
                where=locate(row),
                remedy="dataset.time_format='%d.%m.%Y %H:%M', as your table writes its times",
            ) from error
        zoned.add(when.tzinfo is not None)
        seconds[row] = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        if len(zoned) > 1:
            raise UserError("Some times name a zone and some do not.", where=locate(row), remedy="write all alike")
        if row and seconds[row] <= seconds[row - 1]:
            what = "twice" if seconds[row] == seconds[row - 1] else "out of order"
            raise UserError(
                f"The time {text.strip()} stands {what}.",
                where=locate(row),
                remedy="one row a time, the oldest first (clocks set back in autumn: times in UTC or with their zone)",
            )
    return seconds


def regular(seconds: np.ndarray, values: np.ndarray, step: str | None, locate: Locate, notes: list[str]) -> Regular:
    """The rows on equal steps; what is missing between them is NaN.

    Args:
        seconds: (rows,) rising.
        values: (rows, channels).
        step: `dataset.time_step`: None: as the times have it | `rows` | a length, over which values are averaged.
        notes: what was done is added.

    Raises:
        UserError: the times have no step, and none is named.
    """
    if step == ROWS:
        return Regular(values, None, None)
    if step is not None:
        return _averaged(seconds, values, parsed_step(step), notes)
    gaps = np.diff(seconds)
    if len(gaps) == 0:
        return Regular(values, float(seconds[0]), None)
    lengths, counts = np.unique(gaps, return_counts=True)
    usual = float(lengths[counts.argmax()])
    odd = np.flatnonzero(gaps % usual)
    if len(odd):
        row = int(odd[0]) + 1
        raise UserError(
            f"The steps differ: {_shown(float(gaps[row - 1]))} before this row, {_shown(usual)} before most "
            f"({len(odd)} of {len(gaps)} steps are no multiple of it).",
            where=locate(row),
            remedy="dataset.time_step=1h takes means of hours, dataset.time_step=rows takes each row for a step",
        )
    return _placed(seconds, values, usual, notes)


def _placed(seconds: np.ndarray, values: np.ndarray, step: float, notes: list[str]) -> Regular:
    places = np.rint((seconds - seconds[0]) / step).astype(np.int64)
    spread = np.full((int(places[-1]) + 1, values.shape[1]), np.nan)
    spread[places] = values
    missing = len(spread) - len(values)
    if missing:
        notes.append(f"{missing} rows are missing between steps of {_shown(step)}")
    return Regular(spread, float(seconds[0]), step)


def _averaged(seconds: np.ndarray, values: np.ndarray, step: float, notes: list[str]) -> Regular:
    """Means over [k step, (k + 1) step) since 1970, of what was measured there."""
    bins = np.floor(seconds / step).astype(np.int64)
    start = int(bins[0])
    bins -= start
    shape = (int(bins[-1]) + 1, values.shape[1])
    known = ~np.isnan(values)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, bins, np.where(known, values, 0.0))
    np.add.at(counts, bins, known)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    notes.append(f"{len(values)} rows averaged over steps of {_shown(step)}: {len(means)} steps")
    return Regular(means, start * step, step)


def filled(series: Regular, gaps: str, names: Sequence[str], notes: list[str]) -> np.ndarray:
    """The values (rows, channels) with what `dataset.gaps` puts where nothing was measured.

    Args:
        gaps: refuse | interpolate (a straight line between the neighbours in time) | previous (the last value) | mask
            (they stay NaN: seen by no scaling, learned and scored by nobody).

    Raises:
        UserError: values are missing and `gaps` is refuse; or a channel has none at all.
    """
    values, lacking = series.values, np.isnan(series.values)
    counts = {name: int(n) for name, n in zip(names, lacking.sum(0), strict=True) if n}
    if not counts:
        return values
    told = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:6]) + ", ..." * (len(counts) > 6)
    if gaps == "refuse":
        row, channel = (int(place[0]) for place in np.nonzero(lacking))
        raise UserError(
            f"Values are missing, of {len(values)} steps: {told}.",
            where=f"column '{names[channel]}', {said_time(series, row)}",
            remedy="dataset.gaps=interpolate, previous (the last value before), or mask (leaves them out)",
        )
    empty = next((name for name, n in counts.items() if n == len(values)), None)
    if empty is not None:
        raise UserError(f"The column '{empty}' has no value at all.", where="dataset.channels", remedy="leave it out")
    notes.append(f"missing values ({told}): {gaps}")
    if gaps == "mask":
        return values
    out, rows = values.copy(), np.arange(len(values))
    for column in map(int, np.flatnonzero(lacking.any(0))):
        known = np.flatnonzero(~lacking[:, column])
        if gaps == "interpolate":
            out[:, column] = np.interp(rows, known, values[known, column])
        else:
            last = np.searchsorted(known, rows, side="right") - 1
            out[:, column] = values[known[np.maximum(last, 0)], column]
    return out


def said_time(series: Regular, row: int) -> str:
    """A row's place in words."""
    if series.start is None or series.step is None:
        return f"step {row + 1}"
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=series.start + row * series.step)
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _shown(seconds: float) -> str:
    for unit, length in reversed(UNITS.items()):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"

"""Hourly loads of three kinds of consumers and the temperature that drives them, generated: a series on every machine.

    temperature = season + day + weather (an AR(1) of two days' memory)
    load        = level + its own day and week + heating * max(0, 15 - temperature) + cooling * max(0, temperature - 20)
                  + an AR(1) of some hours' memory

Two sites, `north` and `south`, differ in climate, habits and noise: one to pretrain on, one to adapt to. Nothing is
real about them; they are made of a fixed seed, whatever the run's seed is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer_run.data.series.series_data import SeriesData, named_channels
from transfer_run.data.series.steps import Regular
from transfer_run.errors import UserError, nearest_names
from transfer_run.task import Task

CHANNELS = ("homes", "offices", "works", "temperature")
HOUR, START = 3600.0, 1_483_315_200.0  # 2017-01-02, a Monday
KEYS = ("seed", "mean", "season", "day", "heating", "cooling", "evening", "noise")
SITES: dict[str, dict[str, float]] = {
    "north": dict(zip(KEYS, (11, 6, 11, 3, 0.5, 0.1, 19, 0.35), strict=True)),
    "south": dict(zip(KEYS, (12, 19, 7, 5, 0.2, 0.5, 21, 0.45), strict=True)),
}


class SeasonalSeries(SeriesData):
    """`dataset.site` and `dataset.days` of it, from a Monday in winter on."""

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        for name in named_channels(dataset)[0]:
            if name not in CHANNELS:
                near = nearest_names(name, CHANNELS) or CHANNELS
                raise UserError(f"There is no channel {name!r}.", where="dataset.channels", nearest=near)
        return super().describe(dataset, backbone)

    def read_series(self) -> Regular:
        made = generated(int(self.dataset["days"]), SITES[self.dataset["site"]])
        chosen = [CHANNELS.index(name) for name in named_channels(self.dataset)[0]]
        return Regular(made[:, chosen], START, HOUR)


def generated(days: int, site: Mapping[str, float]) -> np.ndarray:
    """All channels (24 days, 4)."""
    noise = np.random.default_rng(int(site["seed"])).standard_normal((24 * days, 4))
    hours = np.arange(24 * days)
    of_day, weekday = hours % 24, (hours // 24) % 7 < 5
    season = -np.cos(2 * np.pi * (hours / 24 - 20) / 365)
    weather = autoregressive(noise[:, 3], 0.98) * 0.5
    temperature = site["mean"] + site["season"] * season + site["day"] * np.sin(2 * np.pi * (of_day - 9) / 24) + weather
    demand = site["heating"] * np.maximum(0, 15 - temperature) + site["cooling"] * np.maximum(0, temperature - 20)
    evening = np.exp(-(((of_day - site["evening"]) / 2.5) ** 2)) + 0.5 * np.exp(-(((of_day - 7) / 1.5) ** 2))
    work = weekday * np.exp(-(((of_day - 13) / 4.0) ** 4))
    shifts = np.where(weekday, 1.0, 0.3) + 0.2 * np.cos(2 * np.pi * of_day / 8)
    loads = np.stack([4 + 5 * evening + demand, 2 + 6 * work + 0.7 * demand, 10 * shifts + 0.2 * demand], 1)
    drift = np.stack([autoregressive(noise[:, k], 0.9) for k in range(3)], 1)
    return np.concatenate([loads + site["noise"] * drift, temperature[:, None]], 1)


def autoregressive(noise: np.ndarray, memory: float) -> np.ndarray:
    """x_t = memory x_(t-1) + noise_t (rows,)."""
    out, last = np.empty_like(noise), 0.0
    for row, shock in enumerate(noise):
        out[row] = last = memory * last + shock
    return out

"""Forecasts beside what came: a row of axes a window, a column a channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from transfer_run.files import written_whole

PAST, CAME, FORECAST = "#8a8f98", "#1f2328", "#c2410c"


@dataclass(frozen=True)
class Window:
    """One window of a series, in its own units.

    Attributes:
        name: where it stands.
        past: (T, channels); came, forecast: (H, channels); NaN where nothing was measured.
    """

    name: str
    past: np.ndarray
    came: np.ndarray
    forecast: np.ndarray


def save_forecasts(windows: Sequence[Window], channels: Sequence[str], file: Path) -> None:
    """Write the picture of these windows; of the past, no more is shown than three times the forecast's steps."""
    rows, columns = len(windows), len(channels)
    figure = Figure(figsize=(3.2 * columns + 0.4, 1.9 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for window, line in zip(windows, axes, strict=True):
        ahead = np.arange(len(window.came))
        behind = min(len(window.past), 3 * len(ahead))
        for channel, (name, ax) in enumerate(zip(channels, line, strict=True)):
            ax.plot(np.arange(-behind, 0), window.past[len(window.past) - behind :, channel], color=PAST, lw=0.9)
            ax.plot(ahead, window.came[:, channel], color=CAME, lw=1.1, label="came")
            ax.plot(ahead, window.forecast[:, channel], color=FORECAST, lw=1.3, label="forecast")
            ax.axvline(-0.5, color=PAST, lw=0.6, ls=":")
            ax.set_title(f"{name}, {window.name}", fontsize=8)
            ax.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7, frameon=False)
    with written_whole(file) as partial:
        figure.savefig(partial, format="png", dpi=110)

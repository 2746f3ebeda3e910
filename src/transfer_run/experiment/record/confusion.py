"""The picture of `dataset.metrics=[..., by_class]`: which classes are taken for which, `confusion.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(path: Path, names: Sequence[str], counts: Sequence[Sequence[float]]) -> None:
    """Write a PNG: colours are shares of a class's rows, numbers are rows.

    Args:
        counts: rows of each class by what they were called.
    """
    cells = np.array(counts)
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    size = max(3.6, 0.55 * len(names) + 1.8)
    figure = Figure(figsize=(size + 0.9, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("called")
    axes.set_ylabel("is")
    for row, column in np.ndindex(cells.shape):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{cells[row, column]:g}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
    figure.savefig(path, dpi=120)

"""The picture of a pool: who knows what nobody else of a pair knows, and of which classes the teachers know more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

MOST_CLASSES = 12


def draw(
    path: Path, names: Sequence[str], shares: NDArray[np.float64], classes: Mapping[str, Mapping[str, int]]
) -> None:
    """Write a PNG: a map of the pairs, and for each teacher the classes of its positive flips.

    Args:
        shares: (M, M), in row t, column s the share of samples that t gets right and s wrong.
        classes: by teacher, the number of positive flips by class, most first.
    """
    size = max(3.2, 0.8 * len(names) + 1.6)
    figure = Figure(figsize=(size + 3.0 * len(classes), size), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + len(classes), squeeze=False)[0]
    image = panels[0].imshow(100 * shares, cmap="viridis", vmin=0)
    panels[0].set_xticks(range(len(names)), names, rotation=45, ha="right")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_title("right where the other is wrong")
    panels[0].set_ylabel("right")
    panels[0].set_xlabel("wrong")
    for row in range(len(names)):
        for column in range(len(names)):
            if row != column:
                panels[0].text(column, row, f"{100 * shares[row, column]:.1f}", ha="center", va="center", color="white")
    figure.colorbar(image, ax=panels[0], label="% of samples", shrink=0.7)
    for panel, (teacher, counts) in zip(panels[1:], classes.items(), strict=True):
        shown = list(counts.items())[:MOST_CLASSES][::-1]
        panel.barh([name for name, _ in shown], [count for _, count in shown])
        left = len(counts) - len(shown)
        panel.set_title(f"{teacher} knows more" + (f" ({left} classes more)" if left else ""))
        panel.set_xlabel("samples")
    figure.savefig(path, dpi=120)

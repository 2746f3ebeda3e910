"""What a distillation leaves: the set as safetensors and as PNG, a picture of it, its losses.

synthetic.safetensors     whole (`data/images/synthetic.py`)
images/CLASS/000.png      8 bits, cut to what a picture can show
synthetic.png             all of them at one look, a row a class
losses.csv
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from transfer_run.data.images.synthetic import FILE, Synthetic
from transfer_run.files import write_atomically, written_whole

PLAIN = re.compile(r"[\w +-][\w .+-]*")
MOST_ROWS, MOST_COLUMNS = 20, 10
"""Of the picture."""


def pixels_of(images: Tensor, image: Mapping[str, Any]) -> Tensor:
    """Normalised images (n, C, H, W) as pixels of 0..1 and beyond: the backbone's normalisation undone."""
    mean, std = (
        torch.tensor(np.atleast_1d(image[key]), dtype=torch.float32).view(1, -1, 1, 1) for key in ("mean", "std")
    )
    return images.detach().float().cpu() * std + mean


def write(folder: Path, made: Synthetic) -> str:
    """All files of a set; says how much of it the pictures do not show."""
    made.write(folder / FILE)
    bytes_ = (made.images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    names = folders(made.classes)
    counted: dict[int, int] = {}
    for picture, label in zip(bytes_, made.labels.tolist(), strict=True):
        number = counted[label] = counted.get(label, -1) + 1
        _save(folder / "images" / names[label] / f"{number:03d}.png", picture)
    draw(folder / "synthetic.png", bytes_, made.labels.tolist(), made.classes)
    outside = float(((made.images < 0) | (made.images > 1)).float().mean())
    return f"{100 * outside:.1f} % of the synthetic pixels lie outside 0..1: cut in images/, not in {FILE}"


def folders(classes: Sequence[str]) -> list[str]:
    """The classes' names, or, where one could be no folder's, their numbers."""
    plain = all(PLAIN.fullmatch(name) for name in classes)
    return list(classes) if plain else [f"{number:03d}" for number in range(len(classes))]


def _save(path: Path, picture: np.ndarray) -> None:
    with written_whole(path) as partial:
        Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(partial, format="PNG")


def draw(path: Path, pictures: np.ndarray, labels: Sequence[int], classes: Sequence[str]) -> None:
    """A row a class, the first images of it, up to 20 classes."""
    shown = sorted(set(labels))[:MOST_ROWS]
    rows = {label: [place for place, each in enumerate(labels) if each == label][:MOST_COLUMNS] for label in shown}
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(0.9 * columns + 1.2, 0.9 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, places) in zip(panels, rows.items(), strict=True):
        for number, panel in enumerate(line):
            panel.set_xticks([])
            panel.set_yticks([])
            if number >= len(places):
                panel.axis("off")
                continue
            picture = pictures[places[number]]
            panel.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(classes[label], rotation=0, ha="right", va="center")
    left = len(set(labels)) - len(shown)
    if left:
        figure.supxlabel(f"and {left} classes more, in images/", fontsize="small")
    figure.savefig(path, dpi=120)


def write_losses(path: Path, losses: Sequence[float]) -> None:
    """The outer loss of every step."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["step", "loss"])
    writer.writerows(enumerate(losses))
    write_atomically(path, text.getvalue())

"""Mean masks over the epochs as a row of tiles, dark where little of the image is let through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from transfer_run.files import written_whole

TILE, GAP = 128, 8


def save_masks(shots: Tensor, file: Path) -> None:
    """Write a picture of masks (N, G^2) of 0..1, in their order; those that were not taken, below 0, are left out."""
    taken = shots[shots.ge(0).all(1)]
    grid = round(shots.shape[1] ** 0.5)
    sheet = Image.new("L", ((TILE + GAP) * len(taken) + GAP, TILE + 2 * GAP), 255)
    for number, mask in enumerate(taken):
        pixels = np.asarray(mask.reshape(grid, grid).mul(255).round(), dtype=np.uint8)
        tile = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST)
        sheet.paste(tile, (GAP + number * (TILE + GAP), GAP))
    with written_whole(file) as partial:
        sheet.save(partial, format="PNG")

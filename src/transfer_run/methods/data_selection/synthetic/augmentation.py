"""Differentiable augmentation: one random operation for a whole batch, drawn anew for every image in it.

    operation = choose(("color", "crop", ...))          brightness, saturation and contrast are one of them, color
    vary = draw(operation, images)                      few numbers are drawn now: the same view can be had again
    seen = vary(images)                                 gradients to the images pass

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv 2102.08259; strengths
as MTT and AST set them. Images are normalised ones, zeros stand where an image is moved away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.errors import UserError, nearest_names

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0
View = Callable[[Tensor], Tensor]


def check(operations: Sequence[str], key: str) -> None:
    """Raises UserError for a name that is no operation."""
    for name in operations:
        if name not in DRAWN:
            near = nearest_names(str(name), DRAWN) or list(DRAWN)
            raise UserError(f"There is no differentiable operation {name!r}.", where=key, nearest=near)


def choose(operations: Sequence[str]) -> str | None:
    """One of the operations, by Python's generator; None where there is none."""
    return operations[random.randrange(len(operations))] if operations else None


def draw(operation: str | None, images: Tensor) -> View:
    """A view of images of this shape (B, C, H, W) by one operation; calling it again repeats it."""
    return (lambda seen: seen) if operation is None else DRAWN[operation](images)


def varied(operations: Sequence[str]) -> View:
    """Images -> their view by an operation that is drawn at every call."""
    return lambda images: draw(choose(operations), images)(images)


def _each(images: Tensor) -> Tensor:
    """A number in 0..1 for every image (B, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)


def _color(images: Tensor) -> View:
    bright, saturated, contrast = (
        (_each(images) - 0.5) * BRIGHTNESS, _each(images) * SATURATION, _each(images) + CONTRAST,
    )  # fmt: skip

    def view(seen: Tensor) -> Tensor:
        seen = seen + bright
        grey = seen.mean(1, keepdim=True)
        seen = (seen - grey) * saturated + grey
        middle = seen.mean((1, 2, 3), keepdim=True)
        return (seen - middle) * contrast + middle

    return view


def _flip(images: Tensor) -> View:
    chosen = _each(images) < 0.5
    return lambda seen: torch.where(chosen, seen.flip(3), seen)


def _whole(low: int, high: int, images: Tensor) -> Tensor:
    """A whole number from low to high for every image (B, 1)."""
    return torch.randint(low, high + 1, (len(images), 1), device=images.device)


def _crop(images: Tensor) -> View:
    """Moved by up to an eighth of each side."""
    most = [int(side * CROP + 0.5) for side in images.shape[2:]]
    down, right = (_whole(-far, far, images) for far in most)

    def view(seen: Tensor) -> Tensor:
        count, channels, height, width = seen.shape
        first, channel, row, column = (
            torch.arange(size, device=seen.device) for size in (count, channels, height, width)
        )
        rows, columns = (row + down + 1).clamp(0, height + 1), (column + right + 1).clamp(0, width + 1)
        places = first[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        return F.pad(seen, (1, 1, 1, 1))[places]

    return view


def _cutout(images: Tensor) -> View:
    """A square of half of each side is set to zero, somewhere on the image or over its edge."""
    sizes = [int(side * CUTOUT + 0.5) for side in images.shape[2:]]
    begins = [
        _whole(0, side - size % 2, images) - size // 2 for side, size in zip(images.shape[2:], sizes, strict=True)
    ]

    def inside(seen: Tensor, axis: int) -> Tensor:
        # what reaches over the edge is pushed back onto the outermost row, as released
        side = seen.shape[2 + axis]
        low, high = begins[axis].clamp(0, side - 1), (begins[axis] + sizes[axis] - 1).clamp(0, side - 1)
        places = torch.arange(side, device=seen.device)
        return (places >= low) & (places <= high)

    return lambda seen: seen * ~(inside(seen, 0)[:, None, :, None] & inside(seen, 1)[:, None, None, :])


def _moved_by(matrix: Tensor) -> View:
    def view(seen: Tensor) -> Tensor:
        return F.grid_sample(seen, F.affine_grid(matrix, list(seen.shape), align_corners=True), align_corners=True)

    return view


def _scale(images: Tensor) -> View:
    """Each side by a factor of its own."""
    factors = [_each(images).flatten() * (SCALE - 1 / SCALE) + 1 / SCALE for _ in range(2)]
    zero = torch.zeros_like(factors[0])
    rows = [torch.stack([factors[0], zero, zero], 1), torch.stack([zero, factors[1], zero], 1)]
    return _moved_by(torch.stack(rows, 1))


def _rotate(images: Tensor) -> View:
    angle = (_each(images).flatten() - 0.5) * 2 * DEGREES / 180 * math.pi
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    return _moved_by(torch.stack(rows, 1))


DRAWN: dict[str, Callable[[Tensor], View]] = {
    "color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate,
}  # fmt: skip

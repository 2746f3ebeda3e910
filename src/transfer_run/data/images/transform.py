"""From an image to a backbone's numbers, as evaluation reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transfer_run.data.reading.pictures import in_8_bits
from transfer_run.errors import UserError, nearest_names

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


class Transform:
    """Decode, resize to the backbone's size without keeping the aspect, scale to 0..1, normalise.

    Args:
        image: the backbone's `image` node: `size` (pixels, or [height, width]), `mean`, `std` (one number or one a
            channel, of values in 0..1), `interpolation`, `channels` (1: grey, 3: colour).
    """

    def __init__(self, image: Mapping[str, Any]) -> None:
        self.channels = int(image["channels"])
        size = image["size"]
        self.height, self.width = (size, size) if isinstance(size, int) else map(int, size)
        if image["interpolation"] not in RESAMPLING:
            raise UserError(
                f"There is no interpolation '{image['interpolation']}'.",
                where="backbone.image.interpolation",
                nearest=nearest_names(image["interpolation"], RESAMPLING) or sorted(RESAMPLING),
            )
        self.resampling = RESAMPLING[image["interpolation"]]
        self.mean, self.std = self._by_channel(image, "mean"), self._by_channel(image, "std")

    def _by_channel(self, image: Mapping[str, Any], key: str) -> np.ndarray:
        values = np.atleast_1d(np.asarray(image[key], dtype=np.float32))
        if len(values) not in (1, self.channels):
            raise UserError(
                f"There are {len(values)} numbers for {self.channels} channels.",
                where=f"backbone.image.{key}",
                remedy=f"give one number, or {self.channels}",
            )
        return values

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def __call__(self, image: Image.Image) -> Tensor:
        """(channels, height, width) float32; grey images fill all three channels of a colour model."""
        return self.normalise(self.resize(self.convert(image)))

    def convert(self, image: Image.Image) -> Image.Image:
        """Decoded, the right way up, in the backbone's channels.

        Raises:
            ValueError: its values are of no kind that pictures have.
        """
        return in_8_bits(image).convert("L" if self.channels == 1 else "RGB")

    def resize(self, image: Image.Image) -> Image.Image:
        """In the backbone's size."""
        size = (self.width, self.height)
        return image if image.size == size else image.resize(size, self.resampling)

    def normalise(self, image: Image.Image) -> Tensor:
        """A converted image of the backbone's size as the backbone's numbers (channels, height, width)."""
        pixels = np.asarray(image, dtype=np.float32).reshape(self.height, self.width, self.channels) / 255
        return torch.from_numpy(np.ascontiguousarray(((pixels - self.mean) / self.std).transpose(2, 0, 1)))


def image_node(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Mapping[str, Any]:
    """The backbone's `image` node.

    Raises:
        UserError: it reads no images.
    """
    image = backbone.get("image")
    if not image:
        raise UserError(
            f"The backbone '{backbone.get('name')}' does not read images.",
            where=f"dataset={dataset['name']}",
            remedy="choose a backbone of the families vit, cnn, chain, clip",
        )
    return image

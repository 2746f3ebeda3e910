"""Handwritten digits with captions of what they look like: real images, written-out measurements, no download.

    "7: 00 28 58 39 32 30 35 43"     the digit, and the ink in each of the image's eight rows (sums of 17 grey levels)

scikit-learn has no images that people have described, so the captions are measured, not told: they say what the image
holds, no two images share one, and finding the right one among hundreds takes more than the class. Recall on this data
shows that a method learns to match; it compares with no published figure.
"""

from __future__ import annotations

import numpy as np

from transfer_run.data.images.image_data import ArrayImages
from transfer_run.data.images.image_text import Captioned, ImageText
from transfer_run.data.rows.splits import SPLITS, stratified_parts


class DigitCaptions(ImageText):
    """All 1,797 digits, a caption each; splits of 60, 20 and 20 % of every class."""

    def read_pairs(self) -> dict[str, Captioned[ArrayImages]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        ink = digits.images.sum(axis=2).astype(int)
        captions = [
            f"{digit}: " + " ".join(f"{row:02d}" for row in rows)
            for digit, rows in zip(digits.target, ink, strict=True)
        ]
        parts = stratified_parts(digits.target, [0.6, 0.2, 0.2])
        return {
            name: Captioned(
                ArrayImages(pixels[rows], digits.target[rows], f"scikit-learn's digits, {name}"),
                [captions[row] for row in rows],
                np.arange(len(rows)),
            )
            for name, rows in zip(SPLITS, parts, strict=True)
        }

"""Handwritten digits one after the other, with captions of what comes: real images, made-up sequences, no download.

    "3 7 9: 01 31 52 47 40 41 50 37"     the digits, sorted, and the ink in each of the eight rows, mean over the frames

scikit-learn has no films, so two to six of its images stand for one; no image is in two videos. The captions are
measured, not told, and say nothing of the order, for the mean over frames knows none. Recall on this data shows that a
method learns to match frames with texts; it compares with no published figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transfer_run.data.images.image_data import ArrayImages
from transfer_run.data.images.image_text import Captioned
from transfer_run.data.images.video_text import VideoText
from transfer_run.data.rows.splits import SPLITS, shuffled, stratified_parts

LENGTHS = (2, 3, 4, 5, 6)
"""Frames of the videos, in turn."""


@dataclass(frozen=True)
class ArrayVideos:
    """Videos of images in memory; `parts` are the numbers of each one's frames."""

    images: ArrayImages
    parts: list[list[int]]

    def frames(self, video: int) -> ArrayImages:
        rows = self.parts[video]
        return ArrayImages(self.images.pixels[rows], self.images.labels[rows], f"{self.images.source}, video {video}")


class DigitVideos(VideoText):
    """All 1,797 digits in videos of 2 to 6 frames, a caption each; splits of 60, 20 and 20 % of every class."""

    def read_pairs(self) -> dict[str, Captioned[ArrayVideos]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        ink = digits.images.sum(axis=2)
        parts = stratified_parts(digits.target, [0.6, 0.2, 0.2])
        splits = {}
        for name, rows in zip(SPLITS, parts, strict=True):
            images = ArrayImages(pixels[rows], digits.target[rows], f"scikit-learn's digits, {name}")
            videos = _in_turn(shuffled(len(rows)))
            captions = [_caption(images.labels[video], ink[rows][video]) for video in videos]
            splits[name] = Captioned(ArrayVideos(images, videos), captions, np.arange(len(videos)))
        return splits


def _in_turn(rows: list[int]) -> list[list[int]]:
    """The rows cut into pieces of `LENGTHS`, a remainder left out."""
    pieces: list[list[int]] = []
    start = 0
    while start + (length := LENGTHS[len(pieces) % len(LENGTHS)]) <= len(rows):
        pieces.append(rows[start : start + length])
        start += length
    return pieces


def _caption(digits: np.ndarray, ink: np.ndarray) -> str:
    """Of the frames' digits (n,) and the ink in their rows (n, 8)."""
    return f"{' '.join(map(str, sorted(digits)))}: " + " ".join(f"{row:02.0f}" for row in ink.mean(0))

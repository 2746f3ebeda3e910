"""Questions about handwritten digits that only the image answers: real images, no download.

    "which digit is this?"    "7"            visual tokens: the image's 8 rows of 8 pixels, with their boxes
    "is the digit even?"      "no"

The text alone is the same for every image: it leaves one digit in ten to guess, and a coin to toss. What a model is
right beyond that it has seen in the image. The data are for trials: they show whether visual tokens are learned from,
and compare with no published figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from transfer_run.data.rows.splits import SPLITS, stratified_parts
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.visual_text import Visual, VisualText

SIDE = 8
"""Rows, and pixels in a row, of an image."""
QUESTIONS = ("which digit is this?", "is the digit even?")


class DigitQuestions(VisualText):
    """All 1,797 digits, two questions each; splits of 60, 20 and 20 % of every digit, whole images."""

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.images: dict[str, torch.Tensor] = {}
        edges = torch.arange(SIDE + 1) / SIDE
        self.boxes = torch.stack([torch.zeros(SIDE), torch.ones(SIDE), edges[:-1], edges[1:]], dim=1)

    def read_rows(self) -> dict[str, TextRows]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        parts = dict(zip(SPLITS, stratified_parts(digits.target, [0.6, 0.2, 0.2]), strict=True))
        grey = torch.tensor(digits.images / 16, dtype=torch.float32)  # 17 levels, 0 to 1
        self.images = {name: grey[part] for name, part in parts.items()}
        return {name: _asked(digits.target[part]) for name, part in parts.items()}

    def visual(self, split: str, row: int) -> Visual:
        return Visual(self.images[split][row // len(QUESTIONS)], self.boxes)


def _asked(digits: np.ndarray) -> TextRows:
    """Both questions about each image, one after the other, and their answers."""
    answers = [answer for digit in digits for answer in (str(digit), "no" if digit % 2 else "yes")]
    return TextRows([{"question": question} for _ in digits for question in QUESTIONS], answers)

"""Text with stored visual features beside it: what a vision-and-language model reads of an image is already there.

    input_ids, attention_mask, labels     as of any text-to-text data
    extra_embeds (B, V, D_v)              the visual tokens of each row's image or images, filled up with zeros
    extra_boxes  (B, V, 4)                x1, x2, y1, y2 of each token in 0..1; the whole image where none are stored
    extra_images (B, V)                   which image of the row a token is of, 0 or 1
    extra_mask   (B, V)                   1: a token, 0: filled up

V is `dataset.feature_tokens`, D_v `dataset.feature_width`: a plan needs nothing else. A dataset only says where its
texts (`read_rows`) and its features (`visual`) come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transfer_run.data.rows.sampling import Draw
from transfer_run.data.text.encoding import Example
from transfer_run.data.text.text_data import TextData
from transfer_run.task import Batch, BatchSpec

WHOLE = (0.0, 1.0, 0.0, 1.0)
"""The box of a token that has none: x1, x2, y1, y2."""


class Visual(NamedTuple):
    """The visual tokens of one row, N of them.

    Attributes:
        features: (N, D_v), any floating type.
        boxes: (N, 4), x1, x2, y1, y2 in 0..1; None: the whole image.
        images: (N,), the order number of each token's image; None: there is one.
    """

    features: Tensor
    boxes: Tensor | None = None
    images: Tensor | None = None


class VisualText(TextData):
    """Text data whose rows have visual tokens. Config keys beside those of text: `feature_tokens`, `feature_width`."""

    @abstractmethod
    def visual(self, split: str, row: int) -> Visual:
        """The visual tokens of a row, at most `dataset.feature_tokens` of width `dataset.feature_width`."""

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        tokens = (batch_size, int(dataset["feature_tokens"]))
        return super().batch_spec(dataset, backbone, batch_size) | {
            "extra_embeds": ((*tokens, int(dataset["feature_width"])), torch.float32),
            "extra_boxes": ((*tokens, 4), torch.float32),
            "extra_images": (tokens, torch.int64),
            "extra_mask": (tokens, torch.int64),
        }

    def example(self, split: str, draw: Draw) -> Example:
        return super().example(split, draw) | {"visual": self.visual(split, draw.row)}

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokens, width = int(self.dataset["feature_tokens"]), int(self.dataset["feature_width"])
        return super().collate(examples) | stacked([example["visual"] for example in examples], tokens, width)

    @property
    def transform_description(self) -> dict[str, Any]:
        sizes = {key: self.dataset[key] for key in ("feature_tokens", "feature_width")}
        return super().transform_description | {"reads": "text with visual features", **sizes}


def stacked(rows: Sequence[Visual], tokens: int, width: int) -> Batch:
    """Rows of visual tokens as `extra_*` of a batch, each filled up to `tokens`."""
    count = len(rows)
    batch = {
        "extra_embeds": torch.zeros(count, tokens, width),
        "extra_boxes": torch.tensor(WHOLE).repeat(count, tokens, 1),
        "extra_images": torch.zeros(count, tokens, dtype=torch.int64),
        "extra_mask": torch.zeros(count, tokens, dtype=torch.int64),
    }
    for i, row in enumerate(rows):
        seen = len(row.features)
        batch["extra_embeds"][i, :seen] = row.features
        batch["extra_mask"][i, :seen] = 1
        if row.boxes is not None:
            batch["extra_boxes"][i, :seen] = row.boxes
        if row.images is not None:
            batch["extra_images"][i, :seen] = row.images
    return batch

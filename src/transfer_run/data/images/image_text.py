"""Images with captions, to find one by the other; a dataset only says where its pairs come from (`read_pairs`).

    caption 0 ─ image 0      A row is a caption with its image: an image with five captions is read five times.
    caption 1 ─ image 0      labels = number of the image, so equal labels belong together.
    caption 2 ─ image 1

A method that finds the right one among all captions, or all images, of a split is what is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from transfer_run.backbones.declared import family_of
from transfer_run.data.base import DataModule, Example
from transfer_run.data.images.augment import build_augment
from transfer_run.data.images.image_data import decoded
from transfer_run.data.images.transform import Transform, image_node
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.text.cuts import said_of_captions
from transfer_run.data.text.lengths import cut_lengths, source_length
from transfer_run.data.text.tokens import padded, pair_ids
from transfer_run.task import Batch, BatchSpec, Task

if TYPE_CHECKING:
    from transfer_run.data.scores.retrieval import RetrievalScores


Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Captioned(Generic[Shown]):
    """One split.

    Attributes:
        images: undecoded (`images.ImageRows`); of a video data set its videos (`video_text.Videos`).
        captions: one a row.
        image_of: (rows,), the number of each caption's image.
    """

    images: Shown
    captions: Sequence[str]
    image_of: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)


class ImageText(DataModule):
    """Config keys beside the common ones: `loss` (`infonce`, `triplet`), `keep_in_memory` of decoded images.

    Captions are cut and padded to `dataset.max_source_length` tokens, all of them, as CLIP reads texts.
    """

    augments = True

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.transform = Transform(image_node(dataset, backbone))
        self.augment = build_augment(dataset, backbone, self.transform)
        self.pairs: Mapping[str, Captioned[Any]] = {}
        self._padding = 0
        self._decoded: dict[tuple[str, int], Tensor] = {}

    @abstractmethod
    def read_pairs(self) -> Mapping[str, Captioned[Any]]:
        """The splits; those that must be there: train, validation, test."""

    # ---- from the configs alone
    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        return Task(family_of(backbone).form(dataset), 0, (), tuple(dataset["metrics"]), loss=dataset["loss"])

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        shape, text = Transform(image_node(dataset, backbone)).shape, (batch_size, source_length(dataset, backbone))
        return {
            "pixel_values": ((batch_size, *shape), torch.float32),
            "input_ids": (text, torch.int64),
            "attention_mask": (text, torch.int64),
            "labels": ((batch_size,), torch.int64),
        }

    # ---- reading
    def read(self) -> dict[str, int]:
        self.pairs = self.read_pairs()
        self._padding = self.tokenizer.pad_token_id
        self.notes += cut_lengths(self.dataset, self.backbone)
        for name, split in self.pairs.items():
            self.notes += said_of_captions(
                name, split.captions, self.tokenizer, source_length(self.dataset, self.backbone)
            )
        return {name: len(split) for name, split in self.pairs.items()}

    def pixels(self, split: str, number: int) -> Tensor:
        """Image `number` of a split, decoded: (C, H, W)."""
        return decoded(self.transform, self.pairs[split].images, number)

    def example(self, split: str, draw: Draw) -> Example:
        pairs = self.pairs[split]
        number = int(pairs.image_of[draw.row])
        pixels = self._view(draw, pairs.images, number) if draw.augmented else self._decoded.get((split, number))
        if pixels is None:
            pixels = self.pixels(split, number)
            if self.dataset.get("keep_in_memory"):
                self._decoded[split, number] = pixels
        ids = pair_ids(self.tokenizer, [pairs.captions[draw.row]], source_length(self.dataset, self.backbone))
        return {"pixel_values": pixels, "input_ids": ids["input_ids"], "labels": number if draw.scored else -100}

    def _view(self, draw: Draw, images: Any, number: int) -> Tensor | None:
        """The image as training reads it; two captions of one image have two views. None without `dataset.augment`."""
        if self.augment is None:
            return None
        return self.augment(decoded(self.transform.convert, images, number), (self.seed, draw.epoch, draw.row))

    def collate(self, examples: Sequence[Example]) -> Batch:
        length = source_length(self.dataset, self.backbone)
        counts = torch.tensor([len(example["input_ids"]) for example in examples])
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "input_ids": padded([e["input_ids"] for e in examples], self._padding, length, length),
            "attention_mask": (torch.arange(length) < counts[:, None]).long(),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    def metrics(self, split: str) -> RetrievalScores:  # type: ignore[override]
        from transfer_run.data.scores.retrieval import RetrievalScores

        return RetrievalScores(self.task)

    @property
    def label_names(self) -> tuple[str, ...]:
        return ()

    @property
    def transform_description(self) -> dict[str, Any]:
        image = {key: self.backbone["image"][key] for key in ("size", "channels", "mean", "std", "interpolation")}
        length = source_length(self.dataset, self.backbone)
        return {
            "reads": "images and text", "image": image, "tokenizer": self.tokenizer_description,
            "max_source_length": length, "form": "retrieval", "label_names": [],
        }  # fmt: skip

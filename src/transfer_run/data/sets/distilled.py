"""A synthetic training set that a run has distilled, with the validation and test images of the real data set.

    dataset=distilled dataset.path="run:method=expert_trajectories ..." dataset.real="digits classes=[0,1,2]"

The pixels are those of the file, neither cut nor rounded; a backbone of another size reads them resized (bilinearly),
one of three channels reads grey ones three times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.data.base import DataModule, Example
from transfer_run.data.images.synthetic import Synthetic
from transfer_run.data.images.transform import Transform, image_node
from transfer_run.data.load import build_data, data_class
from transfer_run.data.reading.table import existing, path_of
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.task import Batch, BatchSpec, Task

if TYPE_CHECKING:
    from transfer_run.data.scores.labels import Scores


class Distilled(DataModule):
    """train: the synthetic set of `dataset.path`; all other splits: those of `dataset.real`."""

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.real = build_data(_real(dataset), backbone, seed)
        self.images, self.numbers = torch.empty(0), np.empty(0, dtype=np.int64)

    # ---- from the configs alone
    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        node = _real(dataset)
        return data_class(node).describe({**node, "metrics": dataset["metrics"]}, backbone)

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        node = _real(dataset)
        return data_class(node).batch_spec(node, backbone, batch_size)

    # ---- reading
    def read(self) -> dict[str, int]:
        path = path_of(self.dataset)
        found = Synthetic.read(existing(path))
        if found.classes != self.real.label_names:
            raise UserError(
                f"The synthetic set is of the classes {_listed(found.classes)}, dataset.real of "
                f"{_listed(self.real.label_names)}.",
                where=f"dataset.path={path}",
                remedy="dataset.real: the words of the data set that was distilled",
            )
        self.images, self.numbers = self._fitted(found.images), found.labels.numpy()
        sizes = {split: size for split, size in self.real.sizes.items() if split != "train"}
        self.notes += self.real.notes
        return {"train": len(self.numbers), **sizes}

    def _fitted(self, images: Tensor) -> Tensor:
        """The synthetic pixels as the backbone's numbers."""
        transform = Transform(image_node(self.dataset, self.backbone))
        if images.shape[1] == 1 and transform.channels == 3:
            images = images.expand(-1, 3, -1, -1)
            self.notes.append("train: grey synthetic images, read as coloured ones")
        if images.shape[1] != transform.channels:
            raise UserError(
                f"The synthetic images have {images.shape[1]} channels, and the backbone reads {transform.channels}.",
                where=f"backbone={self.backbone.get('name')}",
                remedy="a backbone of as many channels as the one that they were distilled with",
            )
        size = (transform.height, transform.width)
        if images.shape[2:] != size:
            self.notes.append(f"train: synthetic images of {list(images.shape[2:])} pixels, resized to {list(size)}")
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.from_numpy(each).view(1, -1, 1, 1) for each in (transform.mean, transform.std))
        return (images - mean) / std

    def labels(self, split: str) -> np.ndarray:
        self.split(split)
        if split != "train":
            return self.real.labels(split)
        return self.numbers[self.subset.get(split, slice(None))]

    def example(self, split: str, draw: Draw) -> Example:
        if split != "train":
            return self.real.example(split, draw)
        label = int(self.numbers[draw.row]) if draw.scored else -100
        return {"pixel_values": self.images[draw.row], "labels": label}

    def collate(self, examples: Sequence[Example]) -> Batch:
        return self.real.collate(examples)

    def row_id(self, split: str, row: int) -> str:
        return "" if split == "train" else self.real.row_id(split, row)

    def metrics(self, split: str) -> Scores:
        return self.real.metrics(split) if split != "train" else super().metrics(split)

    @property
    def described(self) -> Task:
        return self.real.described

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.real.label_names

    @property
    def transform_description(self) -> dict[str, Any]:
        return self.real.transform_description


def _real(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node of the real data set."""
    node: Mapping[str, Any] | None = (dataset["nodes"] or {}).get("real")
    if node is None:
        raise UserError(
            "Of which data set are the images that a model is tested on?",
            where="dataset.real",
            remedy='dataset.real="DATASET KEY=VALUE"',
        )
    return node


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8)

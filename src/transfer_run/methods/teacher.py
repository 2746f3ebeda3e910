"""A frozen teacher that reads a batch made for the student: its own mean, deviation and size of the same pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.work import alone

OF_ONE_SIZE = ("vit", "clip")
"""Families whose position embeddings are those of one image size."""
PIXELS = "pixel_values"


class Reader(nn.Module):
    """The teacher's logits and features of the student's batch.

    Args:
        teacher: finished, in eval mode.
        normalize: True: pixels are normalised anew with the teacher's mean and deviation.
        size: height and width that images are brought to; None: the student's.
    """

    def __init__(self, teacher: Method, student: Backbone, *, normalize: bool, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.teacher, self.size = teacher, size
        self.changes = False
        mine, other = student.config.get("image"), teacher.backbone.config.get("image")
        if mine and other and normalize:
            (mean, std), (its_mean, its_std) = _moments(mine), _moments(other)
            self.changes = not (torch.equal(mean, its_mean) and torch.equal(std, its_std))
            device = next(teacher.parameters()).device
            self.register_buffer("scale", (std / its_std).to(device), persistent=False)
            self.register_buffer("shift", ((mean - its_mean) / its_std).to(device), persistent=False)

    def batch(self, batch: Batch) -> Batch:
        """The batch as the teacher reads it."""
        if PIXELS not in batch:
            return batch
        pixels = batch[PIXELS]
        if self.size is not None and tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        if self.changes:
            pixels = pixels * self.get_buffer("scale") + self.get_buffer("shift")
        return {**batch, PIXELS: pixels}

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.teacher(self.batch(batch))
        return logits

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """The head's input (B, d)."""
        return self.teacher.features(self.batch(batch))

    @torch.no_grad()
    def both(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features and logits, in one pass, for keeping."""
        features = alone(self.features(batch))
        return features, self.teacher.backbone.head(features)


def _moments(image: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (channels, 1, 1)."""
    channels = int(image["channels"])
    mean, std = (torch.tensor(list(image[key]), dtype=torch.float32) for key in ("mean", "std"))
    return mean.expand(channels).view(-1, 1, 1), std.expand(channels).view(-1, 1, 1)


def _size(image: Any) -> tuple[int, int]:
    size = image["size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def reader_of(
    student: Method, teacher: Method, name: str, *, normalize: bool, own_size: bool, same_task: bool = True
) -> Reader:
    """The teacher as the student's batches reach it.

    Args:
        name: of the source.
        own_size: images are brought to the teacher's size; False: it sees the student's.
        same_task: must it answer the student's task?

    Raises:
        UserError: it answers another task, reads other data, or images of another size or number of channels.
    """
    where = f"sources.{name}"
    if same_task:
        refuse_other_task(student, teacher, where)
    mine, other = (each.backbone.config.get("image") for each in (student, teacher))
    texts = [(each.backbone.config.get("architecture") or {}).get("vocab_size") for each in (student, teacher)]
    if bool(mine) != bool(other) or texts[0] != texts[1]:
        raise UserError(
            "Student and teacher read other inputs, and a batch is made once for both.",
            where=where,
            remedy="a teacher that reads images where the student does, or has the student's tokenizer",
        )
    if not mine or not other:
        return Reader(teacher, student.backbone, normalize=False, size=None)
    if mine["channels"] != other["channels"]:
        raise UserError(
            f"The student reads images of {mine['channels']} channels, the teacher of {other['channels']}.",
            where=where,
            remedy="a teacher that reads as many",
        )
    sizes = _size(mine), _size(other)
    if sizes[0] != sizes[1] and not own_size and teacher.backbone.family in OF_ONE_SIZE:
        raise UserError(
            f"Batches hold images of {sizes[0][0]} x {sizes[0][1]} pixels, the student's size, and the teacher reads "
            f"{sizes[1][0]} x {sizes[1][1]} alone.",
            where=where,
            remedy="method.data.size=per_model enlarges them for it",
        )
    return Reader(teacher, student.backbone, normalize=normalize, size=sizes[1] if own_size else None)


def refuse_other_task(student: Method, teacher: Method, where: str) -> None:
    """A teacher must answer what the student is asked.

    Raises:
        UserError: another form, another number of labels, or other labels.
    """
    mine, other = student.task, teacher.task
    if (mine.form, mine.num_labels) != (other.form, other.num_labels):
        raise UserError(
            f"The teacher was trained for {other.form} with {other.num_labels} labels, the student's task is "
            f"{mine.form} with {mine.num_labels}.",
            where=where,
            remedy="a teacher that was fine-tuned on the student's dataset",
        )
    if mine.label_names and other.label_names and mine.label_names != other.label_names:
        raise UserError(
            f"The teacher's labels are {', '.join(other.label_names[:6])}, the student's "
            f"{', '.join(mine.label_names[:6])}: the same numbers would mean other classes.",
            where=where,
            remedy="a teacher that was fine-tuned on the student's dataset",
        )

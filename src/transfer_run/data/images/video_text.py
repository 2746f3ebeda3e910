"""Videos with captions, to find one by the other, as CLIP4Clip reads them (Luo et al. 2021, arXiv 2104.08860).

    video of 30 frames ─ 12 of them, spread over all of it ─▶ (12, C, H, W)   frame_mask 1 1 1 1 1 1 1 1 1 1 1 1
    video of 5 frames  ─ all 5, then frames of zeros ───────▶ (12, C, H, W)   frame_mask 1 1 1 1 1 0 0 0 0 0 0 0

Otherwise all is as in `image_text.py`. What a method makes of the frames: `methods/pairs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.data.base import Example
from transfer_run.data.images.image_data import ImageRows, decoded
from transfer_run.data.images.image_text import ImageText
from transfer_run.task import Batch, BatchSpec


class Videos(Protocol):
    """One split's videos before decoding."""

    def frames(self, video: int) -> ImageRows:
        """All frames of a video, in the order of time; at least one."""
        ...


class VideoText(ImageText):
    """Config key beside those of `ImageText`: `frames`, F, how many frames of a video are read.

    `read_pairs` gives `Captioned[Videos]`. Batches: `pixel_values` (B, F, C, H, W), `frame_mask` (B, F) int64, 1 where
    there is a frame, and as ever `input_ids`, `attention_mask` and `labels`, the numbers of the videos.
    """

    no_taps = "holds videos: every frame would have taps of its own"

    augments = False  # the frames of a video would have to be varied alike

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        spec, frames = super().batch_spec(dataset, backbone, batch_size), int(dataset["frames"])
        (rows, *shape), dtype = spec["pixel_values"]
        whole = ((rows, frames, *shape), dtype)
        return {**spec, "pixel_values": whole, "frame_mask": ((rows, frames), torch.int64)}

    def pixels(self, split: str, number: int) -> Tensor:
        """Video `number` of a split: the frames that are read of it, (at most F, C, H, W)."""
        frames = self.pairs[split].images.frames(number)
        read = sampled(len(frames.labels), int(self.dataset["frames"]))
        return torch.stack([decoded(self.transform, frames, frame) for frame in read])

    def collate(self, examples: Sequence[Example]) -> Batch:
        frames = int(self.dataset["frames"])
        counts = torch.tensor([len(example["pixel_values"]) for example in examples])
        whole = [{**e, "pixel_values": _filled(e["pixel_values"], frames)} for e in examples]
        return {**super().collate(whole), "frame_mask": (torch.arange(frames) < counts[:, None]).long()}

    @property
    def transform_description(self) -> dict[str, Any]:
        return super().transform_description | {"reads": "videos and text", "frames": int(self.dataset["frames"])}


def sampled(count: int, frames: int) -> list[int]:
    """Which of a video's `count` frames are read: all where there are at most `frames` of them, else as many spread
    evenly over the whole video, the first and the last among them: floor(i (count - 1) / (frames - 1)). One alone is
    the first. (CLIP4Clip's uniform slices.)"""
    if count <= frames:
        return list(range(count))
    return [i * (count - 1) // max(1, frames - 1) for i in range(frames)]


def _filled(pixels: Tensor, frames: int) -> Tensor:
    """(n, C, H, W) with frames of zeros behind: (frames, C, H, W)."""
    return F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, frames - len(pixels)))

"""Images and texts in one space: their similarities over the whole batch, and what draws pairs together.

    video = normalised mean of its frames' normalised embeddings, padding left out (CLIP4Clip's meanP, arXiv 2104.08860)
    s = exp(scale) * image text^T          (B, B), row and column i belong together
    infonce   mean of the cross-entropies of rows and columns (Radford et al. 2021, arXiv 2103.00020; CLIP4Clip)
    triplet   hinge over the hardest negative of each row and column (VSE++, Faghri et al. 2018, arXiv 1707.05612)

The scale is the pretrained one and is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.form import Answering, Form

MARGIN = 0.2
"""How much nearer, in cosine, a pair shall be than its hardest negative (VSE)."""


class Retrieval(Form):
    """The towers' pretrained projections answer; `task.loss` is `infonce` or `triplet`.

    Logits are (B, B), in training of several processes as many as their pairs together; predictions are each image, or
    video, beside its text (B, 2, E).
    """

    paired = True
    reader = "projection of a tower"

    def check(self, method: Any) -> None:
        """Refuses a method that makes one feature of a batch."""
        if method.one_feature:
            raise UserError(
                f"{type(method).__name__} makes one feature of the first tower and has no form for two.",
                where="method, dataset",
                remedy="choose a dataset of classification, or method=full, lora, unipt or sherl",
            )

    def stacks(self, backbone: Backbone) -> tuple[str, ...]:
        return backbone.stacks

    def read(self, backbone: Backbone) -> tuple[str, ...]:
        return backbone.stacks

    def pretrained_heads(self, backbone: Backbone) -> Sequence[nn.Module]:
        return [backbone.projection(stack) for stack in backbone.stacks]

    def logits(self, method: Answering, batch: Batch) -> Tensor:
        images, texts = (gathered(side) if method.training else side for side in pair(method, batch))
        return similarities(images, texts, method.backbone.similarity_scale)

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        labels = gathered(labels) if method.training else labels
        if method.task.loss == "triplet":
            return triplet(logits / method.backbone.similarity_scale, labels)
        return infonce(logits, labels)

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        return torch.stack(pair(method, batch), dim=1)


def pair(method: Answering, batch: Batch) -> tuple[Tensor, Tensor]:
    """Images, or videos, and texts in the space of both, of length 1: (B, E) each."""
    rows = frames_as_rows(batch)
    images, texts = (F.normalize(method.embedding(rows, stack), dim=-1) for stack in method.backbone.stacks)
    return mean_of_frames(images, batch.get("frame_mask")), texts


def frames_as_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as towers read it: frames of videos (B, F, C, H, W) as rows (B F, C, H, W); images stay as they are."""
    if "frame_mask" not in batch:
        return batch
    return {**batch, "pixel_values": batch["pixel_values"].flatten(0, 1)}


def mean_of_frames(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Frames (B F, E) of length 1 as videos (B, E) of length 1.

    Args:
        mask: (B, F), 0 where a video has no frame; None: the rows are images and stay as they are.
    """
    if mask is None:
        return rows
    frames = precise(rows).view(*mask.shape, -1)
    total = (frames * mask.unsqueeze(-1).to(frames.dtype)).sum(1)  # of the mean's direction, which is all that is left
    return F.normalize(total, dim=-1).to(rows.dtype)


def precise(tensor: Tensor) -> Tensor:
    """Half precision as float32: cosines times 100 need more than eight bits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def similarities(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """scale * left right^T: (N, E), (M, E) -> (N, M), at least in float32."""
    with torch.autocast(left.device.type, enabled=False):
        return precise(scale) * precise(left) @ precise(right).T


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes: a softmax over the images of a batch means the whole batch.

    The gradient of one's own rows is multiplied by the number of processes, over which DDP then takes the mean.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    world, own = dist.get_world_size(), rows.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own)
    if rows.requires_grad:
        parts[dist.get_rank()] = rows + (world - 1) * (rows - own)
    return torch.cat(parts)


def same_image(labels: Tensor) -> Tensor:
    """(B, B): other captions of an image that is in the batch twice, which are no negatives."""
    return (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~_diagonal(labels)


def _diagonal(rows: Tensor) -> Tensor:
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


def infonce(logits: Tensor, labels: Tensor) -> Tensor:
    """Symmetric cross-entropy of the scaled cosines (B, B).

    Args:
        labels: (B,), the number of each pair's image.
    """
    logits = logits.masked_fill(same_image(labels), -torch.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def triplet(cosines: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """Sum over the batch of relu(margin + hardest negative - pair), for texts of an image and images of a text."""
    no_negative = same_image(labels) | _diagonal(labels)
    pair, others = cosines.diagonal(), cosines.masked_fill(no_negative, -torch.inf)
    hinges = [(margin + others.amax(dim) - pair).relu() for dim in (0, 1)]
    return torch.stack(hinges).sum()

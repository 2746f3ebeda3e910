"""What keeps a dual encoder where it was: distillation of similarities on reference data, weights held by a spring.

Zheng et al. 2023, "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models",
arXiv 2303.06628, sections 3.2 and 3.3. All features have length 1, s is CLIP's scale exp(logit_scale).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

DIAGONAL = -1e4
"""Similarity of an image with itself in `image_image`: no softmax sees it."""


def precise(tensor: Tensor) -> Tensor:
    """Half precision as float32: cosines times 100 need more than eight bits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def similarities(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """scale * left right^T: (N, E), (M, E) -> (N, M), at least in float32."""
    with torch.autocast(left.device.type, enabled=False):
        return precise(scale) * precise(left) @ precise(right).T


def soft_cross_entropy(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over rows of the cross-entropy of softmax(student / T) under softmax(teacher / T).

    The gradient is that of the KL divergence, the value larger by the teacher's entropy times T^2.
    """
    target = F.softmax(teacher / temperature, dim=1)
    return F.cross_entropy(student / temperature, target) * temperature**2


def image_loss(before: Tensor, now: Tensor, temperature: float) -> Tensor:
    """Every reference image shall see the M sentences as before: (B, M) similarities, a softmax over the sentences."""
    return soft_cross_entropy(before, now, temperature)


def text_loss(before: Tensor, now: Tensor, temperature: float) -> Tensor:
    """Every sentence shall see the B images of the batch as before: (B, M), a softmax over the images.

    The sentences' features are the teacher's on both sides, so this loss too trains the image encoder alone.
    """
    return soft_cross_entropy(before.T, now.T, temperature)


def image_image_loss(before: Tensor, now: Tensor, scale: Tensor, temperature: float) -> Tensor:
    """The same of the images' similarities with each other, their own left out: features (B, E) of both models."""

    def others(features: Tensor) -> Tensor:
        own = torch.eye(len(features), dtype=torch.bool, device=features.device)
        return similarities(features, features, scale).masked_fill(own, DIAGONAL)

    return soft_cross_entropy(others(before), others(now), temperature)


def weight_constraint(now: Iterable[Tensor], anchor: Iterable[Tensor]) -> Tensor:
    """The sum, not the mean, of squared differences of all weights to those at the task's start (section 3.3, WC)."""
    terms = [F.mse_loss(p, q.detach(), reduction="sum") for p, q in zip(now, anchor, strict=True)]
    return torch.stack(terms).sum()


def gathered(features: Tensor) -> Tensor:
    """The rows of all processes: a softmax over the images of a batch means the whole batch.

    The gradient of one's own rows is multiplied by the number of processes, over which DDP then takes the mean.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features
    world, own = dist.get_world_size(), features.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own)
    parts[dist.get_rank()] = features + (world - 1) * (features - own)
    return torch.cat(parts)

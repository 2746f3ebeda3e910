"""What keeps a dual encoder where it was: distillation of similarities on reference data, weights held by a spring.

Zheng et al. 2023, "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models",
arXiv 2303.06628, sections 3.2 and 3.3. All features have length 1, s is CLIP's scale exp(logit_scale).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.methods.forms.retrieval import similarities

DIAGONAL = -1e4
"""Similarity of an image with itself in `image_image`: no softmax sees it."""


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

"""What an encoder makes of its own training set: are neighbours alike, and how wide is a class?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.methods.representation.neighbours.losses import nearest, posterior

AT_ONCE = 256
"""Rows that are compared with all others side by side."""
AT_MOST = 16384
"""Rows that are read of a large set."""


@torch.no_grad()
def on_source(
    features: Callable[[Batch], Tensor], batches: Iterable[Batch], *, k: int, temperature: float, classes: int
) -> dict[str, float | int]:
    """Leave-one-out accuracy of the weighted k nearest neighbours, and the mean cosine distance within a class; of all
    `rows`, or `AT_MOST` of a large set."""
    found: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        found.append((F.normalize(features(batch).float(), dim=1), batch["labels"]))
        if sum(len(labels) for _, labels in found) >= AT_MOST:
            break
    points, labels = (torch.cat(each)[:AT_MOST] for each in zip(*found, strict=True))
    right, distance, pairs = 0.0, 0.0, 0
    for first in range(0, len(points), AT_ONCE):
        own = torch.arange(first, min(first + AT_ONCE, len(points)), device=points.device)
        similarities = points[own] @ points.t()
        others = own[:, None] != torch.arange(len(points), device=points.device)[None]
        answers = posterior(similarities, nearest(similarities, others, k), labels, temperature, classes).argmax(1)
        right += float((answers == labels[own]).sum())
        within = others & (labels[own, None] == labels[None])
        distance, pairs = distance + float((1 - similarities)[within].sum()), pairs + int(within.sum())
    return {"rows": len(points), "neighbour_accuracy": round(right / len(points), 6),
            "distance_within_class": round(distance / max(pairs, 1), 6)}  # fmt: skip

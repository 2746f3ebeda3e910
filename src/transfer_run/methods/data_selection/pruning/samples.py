"""Rivals of DP4TL that prune single samples and look at the source alone: Moderate and GraNd."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.methods.base import Method

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def median_distance(features: NDArray[np.floating], classes: Ints) -> Floats:
    """Distance of each row (n, d) from the median of its class, coordinate by coordinate: (n,); NaN without a class."""
    distance = np.full(len(features), np.nan)
    for label in np.unique(classes[classes >= 0]):
        rows = np.flatnonzero(classes == label)
        own = features[rows].astype(np.float64)
        distance[rows] = np.linalg.norm(own - np.median(own, axis=0), axis=1)
    return distance


def moderate(distance: Floats, ratio: float) -> Ints:
    """Moderate: the rows between the quantiles 0.5 - r/2 and 0.5 + r/2 of the sorted distance, r the kept share.

    Args:
        distance: (n,), see `median_distance`.
        ratio: the share that is pruned, 1 - r.

    Returns:
        Kept rows in ascending order.
    """
    order = np.argsort(distance, kind="stable")[: int(np.isfinite(distance).sum())]
    begin, end = (round(len(order) * (0.5 + half * (1 - ratio) / 2)) for half in (-1, 1))
    return np.sort(order[begin : max(end, begin + 1)])


def gradient_norms(model: Method, batches: Iterable[Batch]) -> Floats:
    """GraNd: norm of the cross-entropy's gradient with respect to all parameters, of each sample in order (n,).

    The model is left as it was: no gradient is kept, batch norm's statistics stay.
    """
    parameters = list(model.parameters())
    before = [p.requires_grad for p in parameters]
    model.eval().requires_grad_(True)
    norms = []
    try:
        for batch in batches:
            for row in range(len(batch["labels"])):
                one = model.form.example(batch, row)
                loss = model.task_loss(model(one), one["labels"])
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                norms.append(float(_norm([g for g in gradients if g is not None])))
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
    return np.asarray(norms)


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.stack([gradient.norm() for gradient in gradients]).norm()

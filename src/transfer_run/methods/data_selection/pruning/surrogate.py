"""What a frozen surrogate says of images: features and logits, in the order of the batches, without a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from transfer_run.backbones.base import Batch
from transfer_run.data.base import DataModule
from transfer_run.memory.tracker import followed_in_part
from transfer_run.methods.base import Method
from transfer_run.methods.work import alone


@torch.no_grad()
def seen_by(
    model: Method, batches: Iterable[Batch], *, logits: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One pass in eval mode.

    Args:
        logits: the classifier's outputs (n, K) instead of its pooled input (n, d).

    Returns:
        Outputs (n, K or d), and the batches' labels (n,).
    """
    model.eval()
    outputs, labels = [], []
    for batch in batches:
        outputs.append(alone((model(batch) if logits else model.features(batch)).float().cpu()).numpy())
        labels.append(batch["labels"].cpu().numpy())
    return np.concatenate(outputs), np.concatenate(labels)


def in_order(model: Method, data: DataModule, split: str, batch_size: int) -> Iterator[Batch]:
    """The rows of a split one after the other, on the model's device."""
    device = next(model.parameters()).device
    for batch in followed_in_part(data.loader(split, batch_size=batch_size, shuffle=False)):
        yield {name: tensor.to(device) for name, tensor in batch.items()}

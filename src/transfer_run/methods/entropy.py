"""The cross-entropy of labels that exclude each other, as `dataset.class_weights` and its neighbours ask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transfer_run.backbones.later import Later
from transfer_run.errors import UserError
from transfer_run.methods.means import divisor, is_shared
from transfer_run.task import Task

IGNORED = -100
"""The label that no loss counts."""


def cross_entropy(logits: Tensor, labels: Tensor, task: Task, training: bool) -> Tensor:
    """The mean over labels (N,) other than -100 of their cross-entropy under logits (N, classes), in float32.

    In training each label counts by the weight of its class, the mean divided by their sum (as in PyTorch), over all
    processes that share the batch (`means.py`); evaluation knows neither weights nor smoothing nor class counts, so
    that a loss or a perplexity stays comparable.
    """
    if not training:
        return F.cross_entropy(logits.float(), labels)
    if task.balanced_softmax:
        logits = logits.float() + logits.new_tensor(task.class_counts, dtype=torch.float32).log()
    weights = logits.new_tensor(task.class_weights).float() if task.class_weights else None
    smoothing = task.label_smoothing
    if not is_shared():
        return F.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=smoothing)
    total = F.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=smoothing, reduction="sum")
    known = labels != IGNORED
    return total / divisor((known if weights is None else weights[labels.clamp(min=0)] * known).sum())


def in_chunks(logits: Later, labels: Tensor, task: Task, training: bool, chunk: int) -> Tensor:
    """`cross_entropy` of labels (...) under logits that are still to be made, which are made again in backward.

    Args:
        chunk: so many tokens at a time.

    Raises:
        UserError: labels are weighted by classes, which words are not.
    """
    if training and (task.class_weights or task.balanced_softmax):
        raise UserError(
            "Classes have weights, and the loss is made of chunks of words.",
            where="hardware.loss_chunk, dataset.class_weights",
            remedy="leave one of them out",
        )
    smoothing = task.label_smoothing if training else 0.0

    def summed(last: Tensor, right: Tensor) -> Tensor:
        return F.cross_entropy(logits.words(last).float(), right, label_smoothing=smoothing, reduction="sum")

    last, right = logits.last.flatten(0, -2), labels.flatten()
    total = torch.zeros((), device=last.device)
    for each, its in zip(last.split(chunk), right.split(chunk), strict=True):
        total = total + checkpoint(summed, each, its, use_reentrant=False)
    known = (right != IGNORED).sum()
    return total / (divisor(known) if is_shared() else known)

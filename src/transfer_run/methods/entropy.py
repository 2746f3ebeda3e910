"""The cross-entropy of labels that exclude each other, as `dataset.class_weights` and its neighbours ask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.task import Task


def cross_entropy(logits: Tensor, labels: Tensor, task: Task, training: bool) -> Tensor:
    """The mean over labels (N,) other than -100 of their cross-entropy under logits (N, classes), in float32.

    In training each label counts by the weight of its class, the mean divided by their sum (as in PyTorch); evaluation
    knows neither weights nor smoothing nor class counts, so that a loss or a perplexity stays comparable.
    """
    if not training:
        return F.cross_entropy(logits.float(), labels)
    if task.balanced_softmax:
        logits = logits.float() + logits.new_tensor(task.class_counts, dtype=torch.float32).log()
    weights = logits.new_tensor(task.class_weights).float() if task.class_weights else None
    return F.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=task.label_smoothing)

"""Losses of a batch against references: similarities s (B, Q), which of them count, which have the row's label.

    look      -log sum_(j in N, y_j = y) exp(s_j / t) / sum_(j in N) exp(s_j / t)       N: the k nearest, of any label
    nca       the same with all references for N            Goldberger et al. 2004, neighbourhood component analysis
    supcon    -mean_(j: y_j = y) log exp(s_j / t) / sum_j exp(s_j / t)          Khosla et al. 2020, arXiv 2004.11362

The sum over positives is inside the logarithm: one near reference of the label is enough, so a class may have several
clusters; SupCon's mean is outside and pulls all of them together. Shapes follow from sizes alone, never from values.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = float("-inf")


def nearest(similarities: Tensor, counts: Tensor, k: int) -> Tensor:
    """Mask (B, Q) of the k largest similarities among those that count; of all of them, where they are fewer."""
    k = min(k, similarities.shape[1])
    places = similarities.detach().masked_fill(~counts, NOTHING).topk(k, dim=1).indices
    return torch.zeros_like(counts).scatter(1, places, torch.ones_like(places, dtype=torch.bool)) & counts


def with_positive(similarities: Tensor, chosen: Tensor, counts: Tensor, same: Tensor) -> Tensor:
    """`chosen`, where it holds no reference of the label, with the nearest such one in the place of the furthest."""
    positives = same & counts
    lacking = ~(chosen & same).any(1) & positives.any(1)
    values = similarities.detach()
    best = values.masked_fill(~positives, NOTHING).argmax(1, keepdim=True)
    worst = values.masked_fill(~chosen, -NOTHING).argmin(1, keepdim=True)
    changed = chosen.scatter(1, worst, torch.zeros_like(worst, dtype=torch.bool))
    changed = changed.scatter(1, best, torch.ones_like(best, dtype=torch.bool))
    return torch.where(lacking[:, None], changed, chosen)


def leave_one_out(similarities: Tensor, chosen: Tensor, same: Tensor, temperature: float, classes: int) -> Tensor:
    """The mean over rows of -log p(label): of the chosen references the share of those that have it.

    A row whose references hold none of its label is left out of the mean. One that has no reference at all has the
    uniform posterior, log(classes), without gradient: so it is before the first keys are there.
    """
    empty, positives = ~chosen.any(1), chosen & same
    some = positives.any(1)
    logits = similarities.float() / temperature
    whole = _log_sum(logits, torch.where(some[:, None], chosen, True))
    own = _log_sum(logits, torch.where(some[:, None], positives, True))
    rows = torch.where(some, whole - own, 0.0) + empty * torch.tensor(float(classes)).log().to(logits)
    return rows.sum() / (some | empty).sum().clamp_min(1)


def supcon(similarities: Tensor, counts: Tensor, same: Tensor, temperature: float, classes: int) -> Tensor:
    """The mean over rows of the mean over its positives of -log of their share of all that counts; rows as above."""
    empty, positives = ~counts.any(1), counts & same
    some = positives.any(1)
    logits = similarities.float() / temperature
    whole = _log_sum(logits, torch.where(some[:, None], counts, True))
    own = (logits * positives).sum(1) / positives.sum(1).clamp_min(1)
    rows = torch.where(some, whole - own, 0.0) + empty * torch.tensor(float(classes)).log().to(logits)
    return rows.sum() / (some | empty).sum().clamp_min(1)


def posterior(similarities: Tensor, chosen: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """log p (B, classes): how much of the chosen references' weight each label has; uniform where there is none.

    Args:
        labels: of the references, (Q,).
    """
    logits = similarities.float() / temperature
    empty = ~chosen.any(1, keepdim=True)
    shares = logits.masked_fill(~(chosen | empty), NOTHING).softmax(1)
    by_label = shares.new_zeros(len(shares), classes).index_add(1, labels, shares)
    by_label = torch.where(empty, 1 / classes, by_label)
    return by_label.clamp_min(torch.finfo(torch.float32).tiny).log()


def _log_sum(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, NOTHING).logsumexp(1)

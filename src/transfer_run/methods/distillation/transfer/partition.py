"""Who teaches each sample of a batch, and the divergence from what it says.

All logits are (B, C) of the same samples. Who teaches is decided at temperature 1 on probabilities: two models' logits
are on different scales. Roth et al., ICLR 2024, arXiv 2310.17653, section 5; names of the strategies as in their code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OF_FLIPS = ("flip_st", "flip_t", "flip_avg")
"""Strategies that ask who is right, so they need labels."""


def wide(x: Tensor) -> Tensor:
    """At least float32: small divergences vanish in half precision."""
    return x if x.dtype == torch.float64 else x.float()


# ---- divergences
def kl_rows(target: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(target || student) of each row (B,), of logits / temperature; without temperature^2."""
    log_p = (wide(target) / temperature).log_softmax(-1)
    log_q = (wide(student) / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergence(target: Tensor, student: Tensor, temperature: float = 1.0, counted: Tensor | None = None) -> Tensor:
    """temperature^2 times the mean of `kl_rows`; of the `counted` rows (B,) alone, 0 where there are none."""
    rows = kl_rows(target, student, temperature)
    if counted is None:
        return temperature**2 * rows.mean()
    kept = counted.to(rows)
    return temperature**2 * (rows * kept).sum() / kept.sum().clamp(min=1)


def largest(teacher: Tensor, count: int | None, *others: Tensor) -> tuple[Tensor, ...]:
    """All logits, of the teacher's `count` largest classes alone; None: of all."""
    if count is None:
        return (teacher, *others)
    kept = teacher.topk(count, dim=-1).indices
    return tuple(each.gather(-1, kept) for each in (teacher, *others))


# ---- who teaches
def confidence(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Probability (B,) of the true class, or without labels of the model's own best class; of an unlabelled row 0."""
    probabilities = wide(logits).softmax(-1)
    if labels is None:
        return probabilities.amax(-1)
    found = probabilities.gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
    return torch.where(labels < 0, torch.zeros_like(found), found)


def most_confident(initial: Tensor, teachers: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """Number (B,) of the most confident one: 0 the initial student, 1, 2, ... the teachers; the first one wins ties."""
    return torch.stack([confidence(each, labels) for each in (initial, *teachers)]).argmax(0)


def flips(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positive flips (B,), only the teacher is right, and negative ones, only the student is."""
    right, taught = student.argmax(-1) == labels, teacher.argmax(-1) == labels
    return taught & ~right, right & ~taught


def taught_by(strategy: str, student: Tensor, initial: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    """Of a strategy other than `flip_avg`: does the teacher teach the sample (B,), and not the initial student?"""
    if strategy == "most_conf":
        return most_confident(initial, [teacher], labels) == 1
    if strategy == "self":
        return torch.zeros(len(student), dtype=torch.bool, device=student.device)
    assert labels is not None
    positive, negative = flips(student, teacher, labels)
    return positive if strategy == "flip_st" else ~negative


def target_of(
    strategy: str, student: Tensor, initial: Tensor, teacher: Tensor, labels: Tensor | None, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """What the student shall say (B, k), without gradient, and its own logits of the same classes (B, k).

    Args:
        count: of the teacher's largest classes that are compared; who teaches is decided by all.
    """
    kept_teacher, kept_initial, kept_student = largest(teacher, count, initial, student)
    if strategy != "flip_avg":
        taught = taught_by(strategy, student, initial, teacher, labels)
        return torch.where(taught[:, None], kept_teacher, kept_initial).detach(), kept_student
    assert labels is not None
    positive, negative = (found[:, None] for found in flips(student, teacher, labels))
    between = (kept_teacher + kept_student) / 2
    target = torch.where(positive, kept_teacher, torch.where(negative, kept_initial, between))
    return target.detach(), kept_student

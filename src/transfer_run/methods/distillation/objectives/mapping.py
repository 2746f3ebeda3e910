"""Which layer of the student learns from which layer of the teacher.

Hidden states are numbered 0..N with the embedding's output as 0; attention maps 0..N-1, the map of block i as i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transfer_run.errors import UserError

SINKHORN_STEPS = 100
REGULARIZATION = 0.05
"""Of the transport plan, as a share of the mean cost: with it a plan costs a few per cent more than the cheapest."""


def layer_pairs(mapping: str, feature: str, student: int, teacher: int) -> list[tuple[int, int]]:
    """(student layer, teacher layer) pairs.

    Args:
        mapping: `skip`, k = teacher / student: hidden i -> int(i k), maps i -> int((i + 1) k - 1); `last`: the
            teacher's last ones in order; `final`: the last one alone; `emd`: every block with every block, to be
            weighted by a transport plan; `none`.
        feature: `hidden` or `attention`.
        student, teacher: numbers of blocks.

    Raises:
        UserError: the teacher has fewer blocks than the student.
    """
    if mapping == "none":
        return []
    if mapping == "final":
        return [(student, teacher)] if feature == "hidden" else [(student - 1, teacher - 1)]
    if mapping == "emd":
        first = 1 if feature == "hidden" else 0
        return [(i + first, j + first) for i in range(student) for j in range(teacher)]
    if teacher < student:
        raise UserError(
            f"The teacher's {teacher} blocks are fewer than the student's {student}.",
            where=f"method.inter.mapping={mapping}",
            remedy="method.inter.mapping=emd, final or none, or another teacher",
        )
    k, rest = teacher / student, teacher - student
    if feature == "hidden":
        return [(i, int(i * k) if mapping == "skip" else rest + i) for i in range(student + 1)]
    return [(i, int((i + 1) * k - 1) if mapping == "skip" else rest + i) for i in range(student)]


def transport_plan(cost: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """F (N_S, N_T) with sum_j F = student, sum_i F = teacher and nearly the least sum of F * cost (Sinkhorn).

    The entropic plan needs no value on the host, unlike the linear program of the paper's code.

    Args:
        cost: (N_S, N_T), without gradient. student, teacher: weights of the layers, each summing to 1.
    """
    cost = cost - cost.min()
    scaled = -cost / (REGULARIZATION * cost.mean()).clamp(min=1e-12)
    log_s, log_t = student.clamp(min=1e-12).log(), teacher.clamp(min=1e-12).log()
    u, v = torch.zeros_like(log_s), torch.zeros_like(log_t)
    for _ in range(SINKHORN_STEPS):
        u = log_s - (scaled + v).logsumexp(1)
        v = log_t - (scaled + u[:, None]).logsumexp(0)
    return (scaled + u[:, None] + v).exp()


def adapted_weights(weights: Tensor, spent: Tensor, temperature: float) -> Tensor:
    """Layer weights of the next step: what is cheap to transport gets more (BERT-EMD, arXiv 2010.06133; recalled).

    C_i = spent_i / w_i is the unit cost of layer i; w = softmax( (sum_k C_k / C_i) / temperature ).

    Args:
        weights: (N,), summing to 1. spent: (N,), sum of F * cost over the other side, not negative.
    """
    unit = (spent / weights.clamp(min=1e-12)).clamp(min=1e-12)
    return (unit.sum() / unit / temperature).softmax(0)

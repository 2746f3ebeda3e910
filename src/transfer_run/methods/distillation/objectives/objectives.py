"""What a student's layer is asked to have in common with a teacher's: losses on hidden states, attention maps, logits.

Hidden states are (B, L, d), attention maps (B, heads, L, L), masks (B, L) with 1 = token. All are means over what is
real, so padding never counts. Definitions: He et al., arXiv 2109.11105, and the loss file of the toolkit that its code
extends; the student's states come projected to the teacher's width where a loss compares feature by feature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.errors import UserError
from transfer_run.methods.means import divisor

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def wide(x: Tensor) -> Tensor:
    """At least float32: sums over tokens and features lose too much in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, L) values over real tokens."""
    mask = mask.to(values)
    return (values * mask).sum() / divisor(mask.sum())


# ---- hidden states -------------------------------------------------------------------------------------------------
def mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference, mean over real tokens and features."""
    return _over_tokens((wide(student) - wide(teacher)).pow(2).mean(-1), mask)


def l2(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Euclidean distance of the two vectors of a token, mean over real tokens (in the paper's list only by name)."""
    squared = (wide(student) - wide(teacher)).pow(2).sum(-1)
    return _over_tokens(torch.sqrt(squared.clamp(min=1e-12)), mask)


def cos(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine, mean over real tokens."""
    return _over_tokens(1 - F.cosine_similarity(wide(student), wide(teacher), dim=-1), mask)


def ce(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the softmax over features, mean over real tokens."""
    return _over_tokens(_cross_entropy(wide(student), wide(teacher)), mask)


def pkd(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of the normalised states of position 0, mean over the batch (BERT-PKD)."""
    s, t = (F.normalize(wide(x[:, 0]), dim=-1) for x in (student, teacher))
    return (s - t).pow(2).sum(-1).mean()


def fsp(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices H^T H / L over features (d, d), L the row's own length."""
    return F.mse_loss(_over_features(wide(student), mask), _over_features(wide(teacher), mask))


def nst(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of the Gram matrices H H^T / d over tokens (L, L), mean over pairs of real tokens.

    The two widths may differ.
    """
    s, t = (wide(x) @ wide(x).mT / x.shape[-1] for x in (student, teacher))
    return _over_pairs((s - t).pow(2), mask)


def _over_features(states: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(states)
    states = states * mask[..., None]
    return states.mT @ states / mask.sum(1).clamp(min=1)[:, None, None]


def _over_pairs(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of (B, L, L) over pairs of real tokens, divided by the number of pairs."""
    mask = mask.to(values)
    pairs = mask[:, :, None] * mask[:, None, :]
    return (values * pairs).sum() / pairs.sum().clamp(min=1)


def _cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-sum softmax(teacher) log softmax(student) over the last axis."""
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)


# ---- attention maps ------------------------------------------------------------------------------------------------
def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference summed over heads, mean over pairs of real tokens (heads are not averaged in the code)."""
    _refuse_other_heads(student, teacher, "mse_sum")
    return _over_pairs((wide(student) - wide(teacher)).pow(2).sum(1), mask)


def attention_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The same of the maps summed over heads, whose numbers may differ."""
    return _over_pairs((wide(student).sum(1) - wide(teacher).sum(1)).pow(2), mask)


def attention_ce(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the softmax over the last axis, mean over heads and real queries."""
    _refuse_other_heads(student, teacher, "ce_mean")
    return _map_cross_entropy(wide(student), wide(teacher), mask[:, None])


def attention_ce_mean(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The same of the maps averaged over heads, whose numbers may differ."""
    return _map_cross_entropy(wide(student).mean(1), wide(teacher).mean(1), mask)


def _map_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Padded keys leave the sum, padded queries the mean; mask (B, L), or (B, 1, L) beside maps with heads."""
    mask = mask.to(student)
    terms = -(teacher.softmax(-1) * student.log_softmax(-1) * mask.unsqueeze(-2)).sum(-1)
    mask = mask.expand_as(terms)
    return (terms * mask).sum() / mask.sum().clamp(min=1)


def _refuse_other_heads(student: Tensor, teacher: Tensor, instead: str) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise UserError(
            f"The student's {student.shape[1]} attention heads cannot be compared one by one with the teacher's "
            f"{teacher.shape[1]}.",
            where="method.inter.loss",
            remedy=f"method.inter.loss={instead} compares all heads together",
        )


HIDDEN: dict[str, Objective] = {"mse": mse, "ce": ce, "l2": l2, "cos": cos, "pkd": pkd, "fsp": fsp, "nst": nst}
ATTENTION: dict[str, Objective] = {
    "mse": attention_mse, "mse_sum": attention_mse_sum, "ce": attention_ce, "ce_mean": attention_ce_mean
}  # fmt: skip
WIDTH_FREE = ("nst",)
"""Losses on hidden states of any two widths: the student's need no projection."""


# ---- predictions ---------------------------------------------------------------------------------------------------
def prediction_ce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened predictions, mean over the batch; there is no factor temperature^2 in the code."""
    return _cross_entropy(wide(student) / temperature, wide(teacher) / temperature).mean()


def prediction_mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared difference of logits / temperature."""
    return F.mse_loss(wide(student) / temperature, wide(teacher) / temperature)


PREDICTION: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"ce": prediction_ce, "mse": prediction_mse}

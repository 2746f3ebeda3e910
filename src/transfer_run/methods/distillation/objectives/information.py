"""MI-alpha: a lower bound on the mutual information of a student's and a teacher's layer, from scores of all pairs.

    S[i, j] = f(x_j, y_i)   x: student, y: teacher, matched pairs on the diagonal
    b[i, j] = log( alpha * mean_{k != j} exp S[i, k] + (1 - alpha) q(y_i) )
    I_alpha = 1 + mean_{i != j} (S[i, i] - b[i, j]) - mean_{i != j} exp(S[i, j] - b[i, i])

alpha = 0 is the TUBA bound with baseline q (NWJ with log q = 1), alpha = 1 is InfoNCE, which never exceeds log(K - 1).
He et al., arXiv 2109.11105, section 3.2, after Poole et al., arXiv 1905.06922.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BOUNDS = ("mi", "nce", "tuba", "nwj")
SMALLEST_BATCH = 3
"""With fewer pairs the mean over the others is one of them or none, and the bound says nothing."""


def weight_of(loss: str, alpha: float, scale: str) -> float:
    """The probability with which the batch mean enters the baseline.

    Args:
        loss: of `BOUNDS`; only `mi` has an alpha of its own.
        scale: `prob`, or `logit` as the released code reads its alpha (0.9 is 0.711 there).
    """
    if loss != "mi":
        return 1.0 if loss == "nce" else 0.0
    return alpha if scale == "prob" else 1 / (1 + math.exp(-alpha))


def log_mean_of_others(scores: Tensor) -> Tensor:
    """m[i, j] = log mean_{k != j} exp S[i, k], (K, K) -> (K, K).

    The share of a column that is not its row's largest is at most 1/2, so it can be taken off the whole; only the
    largest is left out by masking.
    """
    whole = scores.logsumexp(1, keepdim=True)
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argmax(1, keepdim=True), True)
    without_largest = scores.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True)
    share = (scores - whole).exp().masked_fill(largest, 0.0)
    others = torch.where(largest, without_largest, whole + torch.log1p(-share))
    return others - math.log(scores.shape[1] - 1)


def log_baseline(scores: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """b (K, K).

    Args:
        scores: (K, K), row i = teacher sample i.
        log_q: (K,), the learned baseline's logarithm for each teacher sample.
        alpha: in 0..1.
    """
    learned = log_q[:, None].expand_as(scores)
    if alpha == 0:
        return learned
    batch = log_mean_of_others(scores)
    if alpha == 1:
        return batch
    return torch.logaddexp(math.log(alpha) + batch, math.log1p(-alpha) + learned)


def mi_bound(scores: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """I_alpha, a scalar; float32 or better (exp(S - b) overflows in half precision, and early in training elsewhere).

    Args:
        scores: (K, K), K >= 2. log_q: (K,). alpha: in 0..1.
    """
    count = scores.shape[0]
    baseline = log_baseline(scores, log_q, alpha)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    pairs = count * (count - 1)
    joint = (scores.diagonal()[:, None] - baseline).masked_fill(own, 0.0).sum() / pairs
    marginal = (scores - baseline.diagonal()[:, None]).masked_fill(own, -torch.inf).exp().sum() / pairs
    return 1 + joint - marginal

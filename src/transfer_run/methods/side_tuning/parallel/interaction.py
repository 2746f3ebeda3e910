"""UniPT's two layers: parallel interaction (every tap attended to by the guide) and confidence aggregation.

    F_l' = (relu(F_L F_l^T) / its row sums + I) F_l      each tap l on its own, nothing learned
    G    = sum_l c_l F_l',   c = softmax_l( w . (mean F_L * mean F_l) + b )

Diao et al., CVPR 2024 (arXiv 2308.14316), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def relu_attention(
    queries: Tensor, keys: Tensor, mask: Tensor | None, *, eps: float, causal: bool = False, clamp: bool = False
) -> Tensor:
    """Weights (B, Tq, Tk): scores cut at zero and divided by their sum; a row without a positive score is zero.

    Args:
        queries: (B, Tq, r), the last Tq of the keys' positions if `causal`.
        keys: (B, Tk, r).
        mask: (B, Tk), 1 = real; a key that is not gets the score 0, before the cut.
        eps: added to the sum, or if `clamp` the least that a sum may be.
    """
    scores = queries @ keys.transpose(1, 2)
    if mask is not None:
        scores = scores * mask.to(scores.dtype).unsqueeze(1)
    if causal:
        scores = scores.tril(keys.shape[1] - queries.shape[1])
    scores = scores.relu()
    total = scores.sum(-1, keepdim=True, dtype=torch.promote_types(scores.dtype, torch.float32))
    return (scores / (total.clamp(min=eps) if clamp else total + eps)).to(scores.dtype)


def seen_mean(features: Tensor, mask: Tensor | None, last: int | None = None) -> Tensor:
    """Mean of the real tokens (B, 1, r); with `last`, for each of the last positions that of what it sees (causal)."""
    if mask is None and last is None:
        return features.mean(1, keepdim=True)
    weights = torch.ones_like(features[..., :1]) if mask is None else mask.to(features.dtype).unsqueeze(-1)
    if last is None:
        return (features * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    means = (features * weights).cumsum(1) / weights.cumsum(1).clamp(min=1)
    return means[:, means.shape[1] - last :]


class Interaction(nn.Module):
    """Both layers: the mix G of all taps as the guide sees them.

    Args:
        side: r, the width of the projected taps.
        eps: of the normalisation.
        identity: a token keeps itself, F_l' = (A + I) F_l.
        causal: a position sees itself and what stands before it, in the attention and in the means of the confidence
            (language modelling and decoders; the paper's tasks have no such order).
        clamp: see `relu_attention`.
    """

    def __init__(
        self, side: int, *, eps: float, identity: bool = True, causal: bool = False, clamp: bool = False
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(side, 1)
        self.eps, self.identity, self.causal, self.clamp = eps, identity, causal, clamp

    def forward(
        self, guide: Tensor, taps: Sequence[Tensor], mask: Tensor | None, *, whole: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """G (B, Tq, r).

        Args:
            guide: F_L, the queries (B, Tq, r).
            taps: F_l (B, Tk, r).
            mask: (B, Tk), 1 = real.
            whole: F_L of all Tk positions, where step-by-step decoding asks for the last ones only.
            position: (B,), a token of each tap that is added to what the guide reads (pooled form).
        """
        confidence = self.confidence(guide if whole is None else whole, taps, mask, guide.shape[1])
        mixed: Tensor | int = 0
        for index, tap in enumerate(taps):
            mixed = mixed + confidence[..., index : index + 1] * self.interact(guide, tap, mask, position)
        assert isinstance(mixed, Tensor)
        return mixed

    def interact(self, guide: Tensor, tap: Tensor, mask: Tensor | None, position: Tensor | None = None) -> Tensor:
        """F_l' (B, Tq, r)."""
        weights = relu_attention(guide, tap, mask, eps=self.eps, causal=self.causal, clamp=self.clamp)
        read = weights @ tap
        if position is not None:
            rows = torch.arange(len(tap), device=tap.device)
            return read + tap[rows, position].unsqueeze(1)
        return read + tap[:, tap.shape[1] - guide.shape[1] :] if self.identity else read

    def confidence(self, guide: Tensor, taps: Sequence[Tensor], mask: Tensor | None, last: int) -> Tensor:
        """c (B, 1, L); (B, Tq, L) if causal."""
        queries = last if self.causal else None
        guides = seen_mean(guide, mask if mask is None or mask.shape[1] == guide.shape[1] else None, queries)
        logits = [self.gate(guides * seen_mean(tap, mask, queries)) for tap in taps]
        return torch.cat(logits, -1).softmax(-1)


class Past:
    """The projected taps of the positions that are decoded already, by tap."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}

    def extend(self, name: str, new: Tensor) -> Tensor:
        """All positions so far (B, T, r), the new ones last."""
        before = self.features.get(name)
        self.features[name] = new if before is None else torch.cat([before, new], dim=1)
        return self.features[name]

    def batch_select_indices(self, rows: Tensor) -> None:
        self.features = {name: tensor[rows] for name, tensor in self.features.items()}


def down(width: int, side: int) -> nn.Sequential:
    """F = LN(W H + b), D -> r."""
    return nn.Sequential(nn.Linear(width, side), nn.LayerNorm(side))


def projection(kind: str, side: int, width: int) -> nn.Sequential:
    """P: r -> r, `linear` (retrieval) or `mlp` through the backbone's width (question answering, grounding)."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(side, side), nn.LayerNorm(side))
    return nn.Sequential(nn.Linear(side, width), nn.ReLU(), nn.Linear(width, side), nn.LayerNorm(side))

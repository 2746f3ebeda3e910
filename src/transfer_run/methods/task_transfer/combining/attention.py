"""AdapterFusion (Pfeiffer et al. 2021, arXiv 2005.00247): attention over the source adapters, in every token anew.

    q = W_Q z + b_Q,  k_t = W_K o_t + b_K,  v_t = W_V o_t
    a = softmax_t(dropout(q . k_t)),  Delta = sum_t a_t v_t        no 1 / sqrt(d), no temperature

Neither keys nor values have to be made: q . k_t = (W_K^T q) . o_t + q . b_K, and sum_t a_t W_V o_t = W_V sum_t a_t o_t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.methods.task_transfer.combining.adapters import SourceAdapters

_OFF_DIAGONAL = 1e-6
"""Of W_V in the beginning: the released code's identity is none exactly."""


class Attention(nn.Module):
    """The attended sum of one layer's adapters, (..., d) -> (..., d).

    Args:
        width: d.
        dropout: of the scores, before the softmax.
        official: make keys and values as the released code does; equal numbers, 2 T d values a token more for backward.
        like: a weight beside which they stand, for device and type.
    """

    def __init__(self, width: int, *, dropout: float, official: bool, like: Tensor) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, device=like.device, dtype=like.dtype)
        self.key = nn.Linear(width, width, device=like.device, dtype=like.dtype)
        self.value = nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)
        self.dropout, self.official = nn.Dropout(dropout), official
        with torch.no_grad():
            for linear in (self.query, self.key):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            self.value.weight.fill_(_OFF_DIAGONAL).fill_diagonal_(1.0)

    def forward(self, adapters: SourceAdapters, z: Tensor) -> Tensor:
        outputs, query = adapters.outputs(z), self.query(z)
        if self.official:
            scores = torch.einsum("...d,...td->...t", query, self.key(outputs))
            return torch.einsum("...t,...td->...d", self._weights(scores), self.value(outputs))
        scores = torch.einsum("...d,...td->...t", F.linear(query, self.key.weight.t()), outputs)
        scores = scores + (query * self.key.bias).sum(-1, keepdim=True)
        mixed: Tensor = self.value(torch.einsum("...t,...td->...d", self._weights(scores), outputs))
        return mixed

    def _weights(self, scores: Tensor) -> Tensor:
        return self.dropout(scores).softmax(-1)

    def penalty(self) -> Tensor:
        """||I - W_V||_F^2."""
        weight = self.value.weight
        return (torch.eye(len(weight), device=weight.device, dtype=weight.dtype) - weight).square().sum()

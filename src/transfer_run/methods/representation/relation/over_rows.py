"""A transformer encoder over the rows of a batch: each row of features is one token of one sequence."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transfer_run.errors import UserError


class OverRows(nn.Module):
    """(N, C) -> (N, C): post-norm encoder layers without positions, so the order of the rows does not matter.

        U  = LN(X + Drop(MHA(X, X, X)))
        X' = LN(U + Drop(W2 Drop(ReLU(W1 U + b1)) + b2))

    Args:
        width: C.
        ffn_ratio: width of the feed-forward network over C.
        gather: the sequence is the rows of all processes; its own come back. Else each process has its own sequence.

    Raises:
        UserError: the heads do not divide the width, or the network between would have no unit.
    """

    def __init__(
        self, width: int, *, layers: int, heads: int, ffn_ratio: float, dropout: float, gather: bool, device: Any
    ) -> None:
        super().__init__()
        if width % heads or int(width * ffn_ratio) < 1:
            fitting = [str(n) for n in range(1, min(width, 16) + 1) if width % n == 0]
            raise UserError(
                f"Features of {width} numbers are not divided among {heads} heads."
                if width % heads
                else f"Features of {width} numbers leave no unit between.",
                where="method.num_heads" if width % heads else "method.ffn_ratio",
                nearest=fitting if width % heads else [],
            )
        self.gather = gather
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, int(width * ffn_ratio), dropout, batch_first=False, device=device)
            for _ in range(layers)
        )

    def forward(self, rows: Tensor) -> Tensor:
        count, first, sequence = len(rows), 0, rows
        if self.gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            first, sequence = dist.get_rank() * count, AllRows.apply(rows)
        # (rows, a batch of one, C): along dim 0 they see each other
        sequence = sequence.unsqueeze(1)
        for layer in self.layers:
            sequence = layer(sequence)
        return sequence.squeeze(1)[first : first + count]


class AllRows(torch.autograd.Function):
    """(N, C) of each process -> (world N, C) of all; the gradients of all processes come back to the rows' own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]

"""The last Q keys with their labels and the numbers of their rows: first in, first out, the same on every process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Queue(nn.Module):
    """A ring of keys (Q, d) of unit length, labels (Q,) and rows (Q,); places that no key has come to have row -1.

    Args:
        size: Q.
        width: d.
    """

    keys: Tensor
    labels: Tensor
    rows: Tensor
    cursor: Tensor

    def __init__(self, size: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, width, device=device))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("rows", torch.full((size,), EMPTY, dtype=torch.int64, device=device))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64, device=device))

    def filled(self) -> Tensor:
        """Which places hold a key, (Q,)."""
        return self.rows != EMPTY

    def others(self, rows: Tensor | None) -> Tensor:
        """Which references count for each row (B, Q): those that are there and are not of the same image."""
        filled = self.filled()[None]
        return filled if rows is None else filled & (self.rows[None] != rows[:, None])

    @torch.no_grad()
    def put(self, keys: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Keys take the places of the oldest ones; of more than Q the last Q are kept."""
        size, count = len(self.rows), len(rows)
        kept = slice(max(0, count - size), None)
        places = (self.cursor + torch.arange(count, device=rows.device)[kept]) % size
        self.keys[places] = keys[kept].to(self.keys.dtype)
        self.labels[places] = labels[kept]
        self.rows[places] = rows[kept]
        self.cursor.copy_((self.cursor + count) % size)


EMPTY = -1
UNKNOWN = -2
"""The row of a key whose batch does not carry numbers: it is nobody's own."""


def of_all_processes(tensor: Tensor) -> Tensor:
    """(N, ...) of each process -> (world N, ...), in the order of their ranks; of one process, its own."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)

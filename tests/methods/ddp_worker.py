"""One of two processes of the DDP check: every method's gradient on half a batch each, averaged by DDP.

Prints one JSON line on rank 0: method -> largest difference to the gradient of the whole batch on one process, relative
to the largest gradient.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from matrix import batch_of, methods, smallest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from transfer_run.methods.base import Method


class Loss(nn.Module):
    """DDP wraps a forward; a method's step is its loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.method.training_loss(batch)


def even_batch(data: object) -> dict[str, torch.Tensor]:
    """Eight rows whose answers have one length: a mean over tokens is then the mean of the halves' means."""
    batch = batch_of(data, 64)
    if batch["labels"].ndim > 1:
        lengths = (batch["labels"] != -100).sum(1)
        rows = (lengths == lengths.mode().values).nonzero()[:, 0]
        batch = {name: tensor[rows] for name, tensor in batch.items()}
    return {name: tensor[:8] for name, tensor in batch.items()}


def difference(name: str, rank: int) -> float:
    """How far DDP's gradient is from that of one process."""
    method, data = smallest(name)
    method.eval()  # no dropout: both ways must see the same network
    batch = even_batch(data)
    method.training_loss(batch).backward()
    alone = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    wrapped = DistributedDataParallel(Loss(method), find_unused_parameters=True)
    wrapped({key: value[rank::2] for key, value in batch.items()}).backward()
    together = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in alone.values())
    return max(float((together[n] - g).abs().max()) for n, g in alone.items()) / scale


def main() -> None:
    rank, port = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    chosen = sys.argv[3:] or methods("tune", "stage", "distil")
    found = {name: difference(name, rank) for name in chosen}
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""One of two processes of the DDP check: the gradient of named methods on half a batch each, averaged by DDP.

Prints one JSON line on rank 0: method -> largest difference to the gradient of the whole batch on one process, relative
to the largest gradient.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from smallest import batch_of, smallest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from transfer_run.experiment.training.module import average_statistics
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
    if batch["labels"].ndim > 1 and not batch["labels"].is_floating_point():
        lengths = (batch["labels"] != -100).sum(1)
        rows = (lengths == lengths.mode().values).nonzero()[:, 0]
        batch = {name: tensor[rows] for name, tensor in batch.items()}
    return of_rows(batch, slice(8))


def of_rows(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    """Some rows of a batch; what is not by row (the texts of classes) stays whole."""
    count = len(batch["labels"])
    return {name: tensor[rows] if tensor.shape[:1] == (count,) else tensor for name, tensor in batch.items()}


Prepared = tuple[Method, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def alone(name: str) -> Prepared:
    """The method, its batch, and the gradient of the whole batch, computed before there is another process."""
    method, data = smallest(name)
    method.eval()  # no dropout: both ways must see the same network
    batch = even_batch(data)
    method.training_loss(batch).backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    return method, batch, gradients


def difference(prepared: Prepared, rank: int) -> float:
    """How far DDP's gradient is from that of one process."""
    method, batch, gradients = prepared
    wrapped = DistributedDataParallel(Loss(method), find_unused_parameters=True)
    wrapped(of_rows(batch, slice(rank, None, 2))).backward()
    together = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in gradients.values())
    return max(float((together[n] - g).abs().max()) for n, g in gradients.items()) / scale


def statistics(rank: int) -> float:
    """How far averaged running means are from the mean of 0 and 1, the processes' own; frozen ones must not move."""
    trained, frozen = nn.BatchNorm1d(3), nn.BatchNorm1d(3).requires_grad_(False)
    for norm in (trained, frozen):
        norm.running_mean.fill_(rank)
    average_statistics(nn.ModuleList([trained, frozen]))
    return float((trained.running_mean - 0.5).abs().max() + (frozen.running_mean - rank).abs().max())


def main() -> None:
    rank, port = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    chosen = sys.argv[3:]
    prepared = {name: alone(name) for name in chosen}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {name: difference(prepared.pop(name), rank) for name in chosen}
    found["running statistics"] = statistics(rank)
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

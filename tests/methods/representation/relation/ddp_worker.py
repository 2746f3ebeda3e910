"""One of two processes: BatchFormer's gradient in training mode under DDP, its rows gathered or each process's own.

Prints one JSON line on rank 0: the largest differences, relative to the largest gradient, to what is meant.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transfer_run.methods.representation.relation.over_rows import OverRows

Gradients = list[Tensor]


class Model(nn.Module):
    """A network, rows that see each other, a shared head, the mean loss over both halves."""

    def __init__(self, gather: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.relation = OverRows(8, layers=2, heads=2, ffn_ratio=1.0, dropout=0.0, gather=gather, device="cpu")

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        features = self.body(rows).tanh()
        logits = self.head(torch.cat([features, self.relation(features)]))
        return nn.functional.cross_entropy(logits, labels.repeat(2))


def gradients(model: nn.Module, rows: Tensor, labels: Tensor) -> Gradients:
    model.zero_grad()
    model(rows, labels).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def apart(one: Gradients, other: Gradients) -> float:
    scale = max(float(g.abs().max()) for g in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / scale


def main() -> None:
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rows, labels = torch.randn(8, 6), torch.randint(3, (8,))
    whole = gradients(Model(gather=True), rows, labels)
    halves = [gradients(Model(gather=False), rows[r::2], labels[r::2]) for r in (0, 1)]
    mean = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name, gather, meant in (("gathered", True, whole), ("own", False, mean)):
        found[name] = apart(meant, gradients(DistributedDataParallel(Model(gather)), rows[rank::2], labels[rank::2]))
    if rank == 0:
        print(json.dumps({**found, "between": apart(whole, mean)}))
    dist.barrier()  # who leaves first would break what the other still sends
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Right answers of every task after every stage, counted where a checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Batch
from transfer_run.methods.continual.sequence.accuracy import AccuracyMatrix


class TaskCounts(nn.Module):
    """Row 0: before any training; row j + 1: after task j. Whole numbers, which no training precision rounds.

    Args:
        tasks: names, in the order of learning.
    """

    hits: Tensor
    asked: Tensor
    finished: Tensor

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        shape = (len(tasks) + 1, len(tasks))
        for name, size in (("hits", shape), ("asked", shape), ("finished", ())):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64, device=device))

    @torch.no_grad()
    def evaluate(self, row: int, batches: Iterable[Batch], predict: Callable[[Batch], Tensor]) -> str:
        """Fill `row` from one pass over the tasks' test rows (batches of one `stage` each); the row in words."""
        self.hits[row], self.asked[row] = 0, 0
        for batch in batches:
            known, task = batch["labels"] >= 0, int(batch["stage"])
            self.hits[row, task] += ((predict(batch) == batch["labels"]) & known).sum()
            self.asked[row, task] += known.sum()
        when = "before training" if not row else f"after {self.tasks[row - 1]}"
        shares = zip(self.tasks, self._shares()[row], strict=True)
        return f"{when}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares)

    def matrix(self) -> AccuracyMatrix:
        """The accuracies of all rows so far."""
        shares, stages = self._shares(), 0 if self.finished.is_meta else int(self.finished)
        asked = np.zeros(len(self.tasks), dtype=np.int64) if self.asked.is_meta else self.asked.cpu().numpy().max(0)
        return AccuracyMatrix(self.tasks, shares[0], shares[1 : 1 + stages], asked)

    def _shares(self) -> np.ndarray:
        """hits / asked, NaN where nothing was asked."""
        none = np.full(tuple(self.hits.shape), np.nan)
        if self.hits.is_meta:
            return none
        right, all_ = self.hits.cpu().numpy(), self.asked.cpu().numpy()
        return np.divide(right, all_, out=none, where=all_ > 0)

"""What a model answered, row by row, beside what is right: `predictions.csv`.

    row,id,label,prediction,probability
    1,cats/3.png,cat,dog,0.613452         class names; the probability of the class that was answered
    2,cats/4.png,,cat,0.98121             a row without a label

`row` counts from 1 within the split; `id` is the row's own file, where it has one. Texts and numbers have
no probability. A form of task says what is written (`Form.answers`); of one that says nothing there is no file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.data.base import DataModule
from transfer_run.data.rows.sampling import Draw
from transfer_run.files import written_whole
from transfer_run.methods.answers import Answer
from transfer_run.methods.base import Method

HEADER = ("row", "id", "label", "prediction", "probability")


class Predictions:
    """The answers of one split on this process.

    Args:
        method: in whose forward pass the answers are made.
        data: whose rows they are of.
        split: of it.
        draws: the rows of each batch, in the order in which they come.
    """

    def __init__(self, method: Method, data: DataModule, split: str, draws: Sequence[Sequence[Draw]]) -> None:
        self.method, self.data, self.split, self.draws = method, data, split, draws
        self.rows: list[tuple[int, Answer]] = []
        self.batches = 0

    @contextmanager
    def watching(self) -> Iterator[Callable[[Tensor | None, Batch], None]]:
        """A function that takes a batch's predictions down, with the logits that were made meanwhile."""
        made: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made[:] = [output.detach()]

        hook = self.method.register_forward_hook(keep)
        try:
            yield lambda predictions, batch: self._count(predictions, batch, made[0] if made else None)
        finally:
            hook.remove()

    def _count(self, predictions: Tensor | None, batch: Batch, logits: Tensor | None) -> None:
        draws, self.batches = self.draws[self.batches], self.batches + 1
        if predictions is None:
            return
        answers = self.method.form.answers(self.data, predictions, batch, logits)
        kept = self.data.subset.get(self.split)
        for draw, answer in zip(draws, answers, strict=bool(answers)):
            if draw.scored:
                self.rows.append((draw.row if kept is None else int(kept[draw.row]), answer))

    def write(self, path: Path) -> None:
        """Write the answers of all processes, by row; the first process writes. Without answers there is no file."""
        rows = _of_all_processes(self.rows)
        if not rows or (dist.is_initialized() and dist.get_rank() > 0):
            return
        with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(HEADER)
            for row, answer in sorted(rows, key=lambda each: each[0]):
                out.writerow((row + 1, self.data.row_id(self.split, row), *answer))


def _of_all_processes(rows: list[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]

"""Which rows a step of a sequence reads: an epoch is a task, as many full batches as there are steps.

    epoch e ──> rows of task e, in endless passes ──> this rank's part of batch b ─┐
                rows to refer to, in passes of their own ─────────────────────────┴─> list[Draw]

As everywhere, what a step reads is a function of (seed, epoch, batch, rank) alone: a killed run goes on unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transfer_run.data.rows.beside import Passes
from transfer_run.data.rows.sampling import Draw, EpochBatches


class StageBatches(EpochBatches):
    """Training batches: epoch e reads task e, the last task for all epochs after it.

    Args:
        tasks: the rows of every task.
        reference: the rows to refer to during every task; none: batches bring no reference.
        steps: batches of an epoch, all of them full.
        batch_size: rows of the task a batch on this rank, and as many to refer to.
    """

    def __init__(
        self,
        tasks: Sequence[Sequence[int]],
        reference: Sequence[Sequence[int]],
        batch_size: int,
        *,
        steps: int,
        seed: int = 0,
        shuffle: bool = True,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        rows = sum(map(len, tasks))
        super().__init__(rows, batch_size, seed=seed, shuffle=shuffle, world_size=world_size, rank=rank)
        self.tasks, self.reference, self.steps = tasks, reference, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        first, self.start = self.start, 0
        stage = min(self.epoch, len(self.tasks) - 1)
        streams = [
            Passes(rows, (self.seed, number, self.epoch) if self.shuffle else None)
            for number, rows in enumerate((self.tasks[stage], self.reference[stage]))
            if len(rows)
        ]
        for batch in range(first, self.steps):
            begin = (batch * self.world_size + self.rank) * self.batch_size
            yield [stream[begin + position] for stream in streams for position in range(self.batch_size)]


class TaskByTask(EpochBatches):
    """Evaluation batches: the tasks one after another, each in order, no batch with rows of two.

    Args:
        sizes: rows of every task; a row's number counts on from task to task.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(sum(sizes), batch_size, shuffle=False, world_size=world_size, rank=rank)
        self.parts = [EpochBatches(n, batch_size, shuffle=False, world_size=world_size, rank=rank) for n in sizes]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[list[Draw]]:
        self.start, first, seen, offset = 0, self.start, 0, 0
        for part in self.parts:
            for draws in part:
                if seen >= first:
                    yield [draw._replace(row=draw.row + offset) for draw in draws]
                seen += 1
            offset += part.rows

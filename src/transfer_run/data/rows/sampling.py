"""Which rows a step reads: a function of (seed, epoch, batch, rank) alone, so that a killed run goes on unchanged.

    epoch ──> order of all rows ──> global batches ──> this rank's part of each ──> list[Draw]

A global batch holds `batch_size * world_size` rows and does not depend on the number of ranks at equal total size:
rank r takes the r-th part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from transfer_run.errors import UserError


class Draw(NamedTuple):
    """One reading of one row.

    Attributes:
        row: index in the split.
        epoch: feeds the row's own random numbers (noise, augmentation).
        scored: False for a row that was only repeated so that every rank has as many as the others in evaluation;
            its label is taken off, so that neither the loss nor a metric counts it.
        augmented: read as training reads it (`dataset.augment`), not as evaluation does.
        reading: which one of the row it is in its epoch, where `dataset.oversample` makes several; each is varied anew.
    """

    row: int
    epoch: int = 0
    scored: bool = True
    augmented: bool = False
    reading: int = 0


class EpochBatches(Sampler[list[Draw]]):
    """Batches of one rank. `set_epoch` chooses the order, `start_at` the first batch of the next pass.

    Args:
        rows: rows of the split.
        batch_size: rows per batch on this rank.
        seed: together with the epoch the only source of the order.
        shuffle: rows in random order (training) or as they stand (evaluation).
        drop_last: leave out the last global batch when it is not full.
        world_size, rank: of how many processes this is which. Every rank gets the same number of batches of the same
            sizes: what is missing for that is repeated from the order's beginning, in evaluation without being scored.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        if rows < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no batches from rows={rows}, batch_size={batch_size}, rank {rank} of {world_size}")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.world_size, self.rank = world_size, rank
        self.epoch = self.start = 0

    @property
    def sampler(self) -> EpochBatches:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; a start that was set for this very epoch is kept."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def start_at(self, batch: int) -> None:
        """Let the next pass begin with batch `batch` (counted from 0); passes after it are whole again."""
        self.start = batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the start."""
        whole, rest = divmod(self.rows, self.batch_size * self.world_size)
        return whole + bool(rest and not self.drop_last)

    def order(self) -> list[int]:
        """All rows of this epoch, before they are dealt out to batches and ranks."""
        if not self.shuffle:
            return list(range(self.rows))
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        return torch.randperm(self.rows, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[Draw]]:
        first, self.start = self.start, 0
        order, epoch, world = self.order(), self.epoch if self.shuffle else 0, self.world_size
        for batch in range(first, len(self)):
            begin = batch * self.batch_size * world
            part = min(self.batch_size, -(-(self.rows - begin) // world))
            positions = range(begin + self.rank * part, begin + (self.rank + 1) * part)
            yield [Draw(order[p % self.rows], epoch, self.shuffle or p < self.rows) for p in positions]


class _Guarded(Dataset[Any]):
    """Reads the rows of a batch; hands a `UserError` on as a value, because workers would turn it into a traceback."""

    def __init__(self, read: Callable[[Draw], Any], rows: int) -> None:
        self.read, self.rows = read, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, draw: Draw) -> Any:
        return self.read(draw)

    def __getitems__(self, draws: list[Draw]) -> Any:
        try:
            return [self.read(draw) for draw in draws]
        except UserError as error:
            return error


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, examples: Any) -> Any:
        return examples if isinstance(examples, UserError) else self.collate(examples)


class Loader(DataLoader[Any]):
    """A `DataLoader` over `EpochBatches` that knows how far it is.

    `state_dict` and `load_state_dict` make it what Lightning calls a resumable loader: a checkpoint in the middle of
    an epoch goes on with the batch after the last one handed out.
    """

    batch_sampler: EpochBatches

    def __init__(
        self,
        read: Callable[[Draw], Any],
        batches: EpochBatches,
        collate: Callable[[list[Any]], Any],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            _Guarded(read, batches.rows),
            batch_sampler=batches,
            collate_fn=_Collate(collate),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
        )
        self.handed_out = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.handed_out = self.batch_sampler.start
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            self.handed_out += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    def start_at(self, batch: int) -> None:
        self.batch_sampler.start_at(batch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batch_sampler.epoch, "batch": self.handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the last batch handed out; a finished epoch goes on with the next one."""
        finished = state["batch"] >= len(self.batch_sampler)
        self.set_epoch(state["epoch"] + finished)
        self.start_at(0 if finished else state["batch"])

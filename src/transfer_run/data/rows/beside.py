"""Further data sets in every training step: each brings rows of its own, the shorter ones again and again.

    run's own rows, an epoch in batches ──> batch b ─────────────────┐
    unlabeled, in endless passes ─────────> as many rows of its own ─┴─> {labels, ..., "unlabeled/pixel_values", ...}

Which rows a step reads is, as everywhere, a function of (seed, epoch, batch, rank) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from transfer_run.data.rows.sampling import Draw, EpochBatches, Loader
from transfer_run.task import Batch, named_beside


class Passes:
    """Endless passes over rows; `passes[position]` is the row at that position, counted over all passes.

    Args:
        rows: of one pass.
        key: seeds the order of every pass; None: the rows as they stand, each time.
    """

    def __init__(self, rows: Sequence[int], key: tuple[int, ...] | None) -> None:
        self.rows, self.key = rows, key
        self._turn, self._order = -1, list(range(len(rows)))

    def __getitem__(self, position: int) -> Draw:
        turn, at = divmod(position, len(self.rows))
        if turn != self._turn and self.key is not None:
            state = np.random.SeedSequence((*self.key, turn)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0]))
            self._order = torch.randperm(len(self.rows), generator=generator).tolist()
        self._turn = turn
        return Draw(self.rows[self._order[at]], turn)


class Part(NamedTuple):
    """A row of the data set of that name."""

    name: str
    draw: Draw


@dataclass(frozen=True)
class Beside:
    """One data set beside the run's own.

    Attributes:
        rows: what may be read in each epoch, in the last one's and all after it; none: those batches bring nothing.
        size: rows a batch on this process.
        read, collate: as those of the run's own data.
    """

    rows: Sequence[Sequence[int]]
    size: int
    read: Callable[[Draw], Any]
    collate: Callable[[list[Any]], Batch]


class BatchesBeside(EpochBatches):
    """The batches of `main`, each with rows of other data sets behind its own: an epoch is as long as `main`'s.

    Every epoch draws each of the others in a fresh order, and in another one each time it begins anew within the epoch.
    """

    def __init__(self, main: EpochBatches, others: Mapping[str, Beside]) -> None:
        super().__init__(
            main.rows, main.batch_size, seed=main.seed, shuffle=main.shuffle, drop_last=main.drop_last,
            world_size=main.world_size, rank=main.rank,
        )  # fmt: skip
        self.main, self.others = main, dict(sorted(others.items()))

    def __len__(self) -> int:
        return len(self.main)

    def __iter__(self) -> Iterator[list[Any]]:
        first, self.start = self.start, 0
        self.main.set_epoch(self.epoch)
        self.main.start_at(first)
        streams = {}
        for number, (name, other) in enumerate(self.others.items(), start=1):
            rows = other.rows[min(self.epoch, len(other.rows) - 1)]
            if len(rows):
                streams[name] = Passes(rows, (self.seed, number, self.epoch) if self.shuffle else None)
        for batch, draws in enumerate(self.main, start=first):
            parts: list[Any] = list(draws)
            for name, stream in streams.items():
                size = self.others[name].size
                begin = (batch * self.world_size + self.rank) * size
                before = self.epoch * -(-len(self) * self.world_size * size // len(stream.rows))  # passes, for noise
                drawn = (stream[begin + position] for position in range(size))
                parts += [Part(name, draw._replace(epoch=before + draw.epoch)) for draw in drawn]
            yield parts


class _Read:
    def __init__(self, read: Callable[[Draw], Any], others: Mapping[str, Beside]) -> None:
        self.read, self.others = read, others

    def __call__(self, draw: Draw | Part) -> tuple[str, Any]:
        if isinstance(draw, Part):
            return draw.name, self.others[draw.name].read(draw.draw)
        return "", self.read(draw)


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Batch], others: Mapping[str, Beside]) -> None:
        self.collate, self.others = collate, others

    def __call__(self, examples: Sequence[tuple[str, Any]]) -> Batch:
        parts: dict[str, list[Any]] = {}
        for name, example in examples:
            parts.setdefault(name, []).append(example)
        batch = self.collate(parts.pop(""))
        for name, rows in parts.items():
            batch |= named_beside(name, self.others[name].collate(rows))
        return batch


def with_beside(loader: Loader, others: Mapping[str, Beside]) -> Loader:
    """The same batches, which also bring rows of the other data sets (`task.beside` takes them out)."""
    if not others:
        return loader
    dataset: Any = loader.dataset
    join: Any = loader.collate_fn
    return Loader(
        _Read(dataset.read, others),
        BatchesBeside(loader.batch_sampler, others),
        _Collate(join.collate, others),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )

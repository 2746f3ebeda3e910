"""Rows of further data sets in every batch: recycled, drawn anew every epoch, dealt out to ranks, gone on with."""

from __future__ import annotations

from typing import Any

import torch

from transfer_run.data.rows.beside import BatchesBeside, Beside, with_beside
from transfer_run.data.rows.sampling import Draw, EpochBatches, Loader
from transfer_run.task import beside, without_beside


def read(draw: Draw) -> tuple[int, int]:
    return draw.row, draw.epoch


def collate(examples: list[Any]) -> dict[str, torch.Tensor]:
    return {"row": torch.tensor([row for row, _ in examples]), "turn": torch.tensor([turn for _, turn in examples])}


def loader(rows: int, own: int, *, others: dict[str, int] | None = None, size: int = 3, **spread: int) -> Loader:
    """Batches of two rows; of each of the others `size` of so many rows."""
    named = {"b": own} if others is None else others
    parts = {name: Beside([range(count)], size, read, collate) for name, count in named.items()}
    return with_beside(Loader(read, EpochBatches(rows, 2, seed=5, **spread), collate), parts)


def seen(batches: Loader, epoch: int, name: str, start: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    batches.start_at(start)
    return [beside(batch, name)["row"].tolist() for batch in batches]


def test_the_shorter_one_begins_anew_and_every_pass_is_complete() -> None:
    found = seen(loader(20, 7), 0, "b")
    rows = [row for batch in found for row in batch]
    assert (len(found), {len(batch) for batch in found}) == (10, {3})
    passes = [rows[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_the_runs_own_rows_are_those_of_a_loader_without_others() -> None:
    alone, together = Loader(read, EpochBatches(9, 2, seed=5), collate), loader(9, 4)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        together.set_epoch(epoch)
        own = [without_beside(batch) for batch in together]
        assert [b["row"].tolist() for b in own] == [b["row"].tolist() for b in alone]
        assert set(own[0]) == {"row", "turn"}


def test_each_epoch_and_each_data_set_has_an_order_of_its_own() -> None:
    batches = loader(20, 0, others={"b": 100, "a": 100})
    orders = [seen(batches, epoch, name) for epoch in (0, 1) for name in ("a", "b")]
    assert len({str(order) for order in orders}) == 4
    assert seen(loader(20, 0, others={"a": 100, "b": 100}), 0, "a") == orders[0]  # in whatever order they are named


def test_a_repeated_row_is_drawn_with_other_noise_in_every_pass_of_every_epoch() -> None:
    batches, turns = loader(20, 7), []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        turns += [turn for batch in batches for turn in beside(batch, "b")["turn"].unique().tolist()]
    assert sorted(set(turns)) == list(range(10))


def test_it_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = seen(loader(20, 7), 1, "b")
    batches = loader(20, 7)
    assert seen(batches, 1, "b", start=4) == whole[4:]
    assert seen(batches, 2, "b") == seen(loader(20, 7), 2, "b")
    stopped = loader(20, 7)
    stopped.set_epoch(1)
    for _, batch in zip(range(3), stopped, strict=False):
        assert batch
    gone_on = loader(20, 7)
    gone_on.load_state_dict(stopped.state_dict())
    assert [beside(batch, "b")["row"].tolist() for batch in gone_on] == whole[3:]


def test_ranks_share_what_one_process_reads() -> None:
    one = seen(loader(20, 7, size=4), 0, "b")
    parts = [Loader(read, EpochBatches(20, 1, seed=5, world_size=2, rank=rank), collate) for rank in (0, 1)]
    two = [seen(with_beside(part, {"b": Beside([range(7)], 2, read, collate)}), 0, "b") for part in parts]
    assert [first + second for first, second in zip(*two, strict=True)] == one


def test_rows_may_differ_by_epoch_and_an_epoch_may_bring_none() -> None:
    other = Beside([range(0), range(3, 5)], 2, read, collate)
    batches = BatchesBeside(EpochBatches(4, 2), {"b": other})
    found = {}
    for epoch in (0, 1, 2):
        batches.set_epoch(epoch)
        found[epoch] = sorted(part.draw.row for batch in batches for part in batch[2:])
    assert found == {0: [], 1: [3, 3, 4, 4], 2: [3, 3, 4, 4]}

"""The order of rows: a pure function of seed and epoch, dealt out to ranks without loss, resumable at any batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_run.data.base import DataModule
from transfer_run.data.rows.sampling import Draw, EpochBatches, Loader
from transfer_run.errors import UserError

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))


def ranks(rows: int, size: int, world: int, **more: object) -> list[list[list[Draw]]]:
    return [list(EpochBatches(rows, size, world_size=world, rank=r, **more)) for r in range(world)]  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 5), st.booleans())
def test_all_rows_are_read_and_scored_once(shape: tuple[int, int, int], seed: int, shuffle: bool) -> None:
    rows, size, world = shape
    parts = ranks(rows, size, world, seed=seed, shuffle=shuffle)
    draws = [draw for part in parts for batch in part for draw in batch]
    assert {draw.row for draw in draws} == set(range(rows))
    if not shuffle:
        assert sorted(draw.row for draw in draws if draw.scored) == list(range(rows))
    assert len(draws) - rows < world  # repeated only as far as the ranks need equal shares
    assert len({tuple(map(len, part)) for part in parts}) == 1
    assert all(len(part) == len(EpochBatches(rows, size, world_size=world)) for part in parts)
    assert all(0 < len(batch) <= size for part in parts for batch in part)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_ranks_share_the_batches_of_one_device(batches: int, size: int, world: int, epoch: int) -> None:
    rows = batches * size * world
    alone = EpochBatches(rows, size * world, seed=7)
    alone.set_epoch(epoch)
    parts = [EpochBatches(rows, size, seed=7, world_size=world, rank=r) for r in range(world)]
    for part in parts:
        part.set_epoch(epoch)
    together = [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
    assert together == list(alone)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.data())
def test_a_later_start_gives_the_remaining_batches(shape: tuple[int, int, int], data: st.DataObject) -> None:
    rows, size, world = shape
    batches = EpochBatches(rows, size, seed=3, world_size=world, rank=data.draw(st.integers(0, world - 1)))
    batches.set_epoch(2)
    whole, start = list(batches), data.draw(st.integers(0, len(batches)))
    batches.start_at(start)
    batches.set_epoch(2)  # what a trainer calls at every start of an epoch
    assert list(batches) == whole[start:]
    assert list(batches) == whole, "only the next pass is cut"
    assert len(batches) == len(whole)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {}
    for seed, epoch in itertools.product(range(3), range(3)):
        batches = EpochBatches(50, 4, seed=seed)
        batches.set_epoch(epoch)
        torch.manual_seed(epoch * 31 + seed)
        torch.rand(3)
        orders[seed, epoch] = batches.order()
        assert batches.order() == orders[seed, epoch]
    assert len({tuple(order) for order in orders.values()}) == 9
    assert orders[0, 0][:5] == [26, 43, 3, 12, 20], "the order is part of a run's result: it must never change"


def test_drop_last_leaves_out_the_rest_only() -> None:
    assert [len(b) for b in EpochBatches(10, 4, drop_last=True)] == [4, 4]
    assert [len(b) for b in EpochBatches(10, 4)] == [4, 4, 2]


@pytest.mark.parametrize("wrong", [(0, 1, 0, 1), (3, 0, 0, 1), (3, 1, 2, 2)])
def test_impossible_batches_are_refused(wrong: tuple[int, int, int, int]) -> None:
    rows, size, rank, world = wrong
    with pytest.raises(ValueError, match="no batches"):
        EpochBatches(rows, size, rank=rank, world_size=world)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loader_goes_on_behind_the_last_batch(docs: DataModule) -> None:
    loader = docs.loader("train", batch_size=64)
    loader.set_epoch(3)
    whole = list(loader)
    stopped = docs.loader("train", batch_size=64)
    stopped.set_epoch(3)
    for _ in itertools.islice(stopped, 5):
        pass
    resumed = docs.loader("train", batch_size=64)
    resumed.load_state_dict(stopped.state_dict())
    rest = list(resumed)
    assert len(rest) == len(whole) - 5
    assert all(map(same, rest, whole[5:]))
    finished = docs.loader("train", batch_size=64)
    finished.load_state_dict({"epoch": 3, "batch": len(whole)})
    assert finished.batch_sampler.epoch == 4
    assert len(list(finished)) == len(whole)


def test_two_ranks_read_disjoint_rows(docs: DataModule) -> None:
    seen = []
    for rank in range(2):
        batches = docs.loader("train", batch_size=8, world_size=2, rank=rank).batch_sampler
        seen.append({draw.row for batch in batches for draw in batch})
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == docs.sizes["train"]


def test_repeated_evaluation_rows_lose_their_label(digits: DataModule) -> None:
    rows = digits.sizes["test"]
    assert rows % 2, "the test needs an odd number of rows"
    loaders = [digits.loader("test", batch_size=50, world_size=2, rank=rank) for rank in range(2)]
    labels = [torch.cat([batch["labels"] for batch in loader]) for loader in loaders]
    assert len(labels[0]) == len(labels[1]) == (rows + 1) // 2
    assert (torch.cat(labels) >= 0).sum() == rows


def _read(draw: Draw) -> int:
    if draw.row == 5:
        raise UserError(
            "A row cannot be read.", where="file.csv, row 6, column 'text'", nearest=["a"], remedy="repair it"
        )
    return draw.row


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_reaches_the_user_whole(workers: int) -> None:
    loader = Loader(_read, EpochBatches(8, 2, shuffle=False), sum, num_workers=workers)
    batches = iter(loader)
    assert [next(batches), next(batches)] == [1, 5]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value).splitlines()[0] == "A row cannot be read."
    assert caught.value.where == "file.csv, row 6, column 'text'"


def test_workers_do_not_change_the_batches(digits: DataModule) -> None:
    plain, worked = (list(digits.loader("train", batch_size=128, num_workers=n)) for n in (0, 2))
    assert len(plain) == len(worked)
    assert all(map(same, plain, worked))

"""The queue holds the last keys, and the same ones on every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from transfer_run.methods.representation.neighbours.queue import Queue, of_all_processes


def test_after_some_steps_it_holds_exactly_the_last_keys() -> None:
    """Check 7."""
    queue = Queue(10, 2, torch.device("cpu"))
    assert not queue.filled().any()
    for step in range(5):
        rows = torch.arange(step * 4, step * 4 + 4)
        queue.put(rows[:, None].float().expand(4, 2), rows % 3, rows)
        assert int(queue.filled().sum()) == min(10, 4 * step + 4)
    assert sorted(queue.rows.tolist()) == list(range(10, 20))
    assert torch.equal(queue.keys[:, 0].long(), queue.rows)
    assert torch.equal(queue.labels, queue.rows % 3)


def test_of_a_batch_larger_than_the_queue_the_last_keys_stay() -> None:
    queue, rows = Queue(4, 1, torch.device("cpu")), torch.arange(11)
    queue.put(rows[:, None].float(), rows, rows)
    assert sorted(queue.rows.tolist()) == [7, 8, 9, 10]
    queue.put(torch.ones(1, 1), torch.tensor([11]), torch.tensor([11]))
    assert sorted(queue.rows.tolist()) == [8, 9, 10, 11]


def test_an_image_is_no_reference_of_its_own() -> None:
    queue, rows = Queue(4, 1, torch.device("cpu")), torch.tensor([3, 5])
    queue.put(torch.ones(2, 1), rows, rows)
    assert queue.others(torch.tensor([5, 9])).tolist() == [[True, False, False, False], [True, True, False, False]]
    assert queue.others(None).tolist() == [[True, True, False, False]]


def gathering(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    queue, rows = Queue(6, 1, torch.device("cpu")), torch.arange(2) + 10 * rank
    queue.put(*(of_all_processes(each) for each in (rows[:, None].float(), rows % 7, rows)))
    torch.save(queue.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_hold_the_same_keys_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    spawned: Any = mp.spawn(gathering, (str(tmp_path),), nprocs=2)
    assert spawned is None
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["rows"].tolist() == [0, 1, 10, 11, -1, -1]
    assert one["labels"].tolist() == [0, 1, 3, 4, 0, 0]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_alone_a_process_has_its_own() -> None:
    assert of_all_processes(tensor := torch.ones(2)) is tensor
    assert pytest.approx(1) == float(tensor[0])

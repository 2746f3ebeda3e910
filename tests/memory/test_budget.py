"""The largest batch that fits: the answer fits, one more does not, and few batches are tried."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory import small
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import build_optimizers
from transfer_run.memory.allocator import cuda_block
from transfer_run.memory.budget import LARGEST_BATCH, largest_batch, parse_budget
from transfer_run.memory.planner import Rehearsal, Setting
from transfer_run.methods.tuning.full import Full


@given(
    base=st.integers(0, 10**9),
    each=st.integers(2 * 10**6, 10**8),
    budget=st.integers(1, 10**11),
    start=st.integers(1, 200),
    hint=st.integers(0, 10**9),
)
@settings(deadline=None)
def test_both_sides_of_the_border_are_measured(base: int, each: int, budget: int, start: int, hint: int) -> None:
    tried: list[int] = []

    def peak_of(batch: int) -> int:
        tried.append(batch)
        return cuda_block(base + each * batch)

    answer = largest_batch(peak_of, budget, start, hint)
    assert len(tried) == len(set(tried)) <= 8
    assert answer.peak == peak_of(max(1, answer.batch_size))
    assert answer.next_peak == peak_of(answer.batch_size + 1)
    assert answer.next_peak > budget
    assert (answer.peak <= budget) == (answer.batch_size > 0)


@given(start=st.integers(1, 200), budget=st.integers(1, 10**7))
@settings(deadline=None)
def test_a_peak_that_is_no_line_is_found_too(start: int, budget: int) -> None:
    answer = largest_batch(lambda batch: batch**2 + 1000 * (batch > 50), budget, start)
    assert answer.next_peak is not None
    assert answer.next_peak > budget
    assert answer.batch_size == 0 or answer.peak <= budget


def test_a_batch_that_costs_nothing_stops_at_the_end() -> None:
    answer = largest_batch(lambda batch: 100, 200, 8)
    assert (answer.batch_size, answer.next_peak) == (LARGEST_BATCH, None)


def test_the_answer_of_a_rehearsal_is_right() -> None:
    with torch.device("meta"):
        method = Full(small.backbone("vit", "meta"), small.task("vit"))
    config = {"about": {"target": "torch.optim.SGD"}, "lr": 0.1, "momentum": 0.0}
    rehearsal = Rehearsal(
        method, lambda: build_optimizers(method.optimizers(config, 1), config), lambda n: small.shapes("vit", n),
        Setting(target="cpu"),
    )  # fmt: skip
    budget = 12 * 10**6
    answer = largest_batch(lambda size: rehearsal.measure(size).peak, budget, 4)
    assert rehearsal.measure(answer.batch_size).peak == answer.peak <= budget
    assert rehearsal.measure(answer.batch_size + 1).peak == answer.next_peak
    assert answer.next_peak is not None
    assert answer.next_peak > budget


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24 GiB", 24 * 2**30),
        ("1.5gb", 1_500_000_000),
        ("800MiB", 800 * 2**20),
        ("12g", 12 * 10**9),
    ],
)
def test_amounts_of_memory_are_read(text: str, size: int) -> None:
    assert parse_budget(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "24 gigs", "-3GB", ""])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not an amount of memory") as error:
        parse_budget(text)
    assert "plan.budget" in str(error.value)

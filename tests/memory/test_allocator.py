"""Blocks as PyTorch's CUDA allocator counts them (`CUDACachingAllocator.cpp`: `should_split`)."""

from __future__ import annotations

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.memory.allocator import MIB, cuda_block, exact, expandable_block


@pytest.mark.parametrize(
    ("size", "counted"),
    [
        (0, 0),
        (1, 512),
        (512, 512),
        (513, 1024),
        (MIB + 1, MIB + 512),  # cut out of 20 MiB
        (10 * MIB - 1, 10 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512),  # a segment of 12 MiB; the rest, 2 MiB less 512 bytes, is cut off
        (11 * MIB - 512, 11 * MIB - 512),  # the rest is 1 MiB and 512 bytes
        (11 * MIB, 12 * MIB),  # the rest is 1 MiB: not cut off
        (11 * MIB + 1, 12 * MIB),
        (12 * MIB, 12 * MIB),
        (100 * MIB + 1, 100 * MIB + 512),
    ],
)
def test_a_rest_of_more_than_one_mib_is_cut_off(size: int, counted: int) -> None:
    assert cuda_block(size) == counted
    assert expandable_block(size) == -(-size // 512) * 512
    assert exact(size) == size


@pytest.mark.parametrize("expandable", [False, True])
def test_an_unlucky_batch_costs_no_jump(expandable: bool) -> None:
    """400 pictures more cost the same twice, though tensors of 10 MiB and more do not meet multiples of 2 MiB."""
    words = ["method=linear_probe", "backbone=vit_tiny", "dataset=digits", f"plan.expandable_segments={expandable}"]
    small, middle, large = (
        plan_run(compose([*words, f"dataset.batch_size={size}"])).memory["peak"] for size in (2000, 2400, 2800)
    )
    unevenness = abs((large - middle) - (middle - small))
    assert unevenness <= (512 * 20 if expandable else 3 * MIB)
    assert expandable or unevenness > 0

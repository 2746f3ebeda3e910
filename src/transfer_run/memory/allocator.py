"""Bytes that an allocator counts for bytes asked for.

PyTorch's caching CUDA allocator (`CUDACachingAllocator.cpp`: `round_size`, `get_allocation_size`, `should_split`)
rounds to 512 bytes and cuts the block out of a segment: 2 MiB for up to 1 MiB, 20 MiB for less than 10 MiB, else the
next multiple of 2 MiB. Its counters count the block, so a segment's rest is not counted, but where the rest is at most
1 MiB and so not cut off. `expandable_segments` cuts always.
"""

from __future__ import annotations

MIB = 2**20
_BLOCK, _LARGE, _SEGMENT, _REST = 512, 10 * MIB, 2 * MIB, MIB


def exact(size: int) -> int:
    """Bytes as asked for: what a CPU allocator hands out, near enough."""
    return size


def expandable_block(size: int) -> int:
    """Bytes that PyTorch counts on CUDA under `PYTORCH_ALLOC_CONF=expandable_segments:True`."""
    return _up(size, _BLOCK)


def cuda_block(size: int) -> int:
    """Bytes that PyTorch counts on CUDA for a tensor that gets a segment of its own."""
    block = _up(size, _BLOCK)
    segment = _up(block, _SEGMENT)
    return segment if block >= _LARGE and segment - block <= _REST else block


def _up(size: int, granule: int) -> int:
    return -(-size // granule) * granule

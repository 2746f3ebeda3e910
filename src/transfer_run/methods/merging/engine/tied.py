"""Tied matrices (shared embeddings, language heads) that a file may hold under several names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from transfer_run.methods.merging.engine.checkpoint import Checkpoint

_FIRST = 1024  # elements whose equality makes two matrices candidates
_STEP = 1 << 20  # elements compared at a time
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tied_names(checkpoints: Sequence[Checkpoint], names: Collection[str]) -> dict[str, list[str]]:
    """The further names of every tied matrix, by the one name under which it is merged and counted.

    Two names are tied when every checkpoint that has both holds the same values under them, not all of one constant.
    A checkpoint may lack the further name: versions of a library keep different names of a tied matrix.
    """
    found: dict[str, list[str]] = {}
    for group in sorted({group for checkpoint in checkpoints for group in _candidates(checkpoint, names)}):
        left = [name for name in group if not any(name in others for others in found.values())]
        for name in left:
            if all(name in c.entries for c in checkpoints):
                same = [other for other in left if other != name and _tied(checkpoints, name, other)]
                if same:
                    found[name] = sorted({*found.get(name, []), *same})
                    break
    return found


def _candidates(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Groups of matrices of one shape that begin alike."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in sorted(names & checkpoint.entries.keys()):
        entry = checkpoint.entries[name]
        if len(entry.shape) == 2 and entry.numel > 1 and entry.dtype.is_floating_point:
            beginning = _bits(checkpoint.read(name, 0, min(entry.numel, _FIRST)))
            groups[entry.shape, entry.dtype, beginning.numpy().tobytes()].append(name)
    return (tuple(group) for group in groups.values() if len(group) > 1)


def _tied(checkpoints: Sequence[Checkpoint], one: str, other: str) -> bool:
    return all(other not in c.entries or _equal(c, one, other) for c in checkpoints)


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Are two tensors of a checkpoint equal to the bit, and not one constant?"""
    entry = checkpoint.entries[one]
    if entry != checkpoint.entries[other]:
        return False
    varied = False
    for start in range(0, entry.numel, _STEP):
        stop = min(entry.numel, start + _STEP)
        left, right = _bits(checkpoint.read(one, start, stop)), _bits(checkpoint.read(other, start, stop))
        if not torch.equal(left, right):
            return False
        varied = varied or bool((left != left[0]).any())
    return varied


def _bits(values: Tensor) -> Tensor:
    return values.view(_INTEGERS[values.dtype.itemsize])

"""peft's layers on the meta device: two of its tuners ask their own new tensors for values, which there are none of.

BOFT sets the ones of its permutation matrices by their indices, UniLoRA counts how often an index is drawn. Built for
real, a plan of BOFT on a model of 3 billion parameters took minutes and gigabytes. Sizes need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.boft.layer import BOFTLayer
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def without_values(on_meta: bool) -> Iterator[None]:
    """While this lasts such questions are answered by a tensor of the right shape, if everything is built on meta."""
    if not on_meta:
        yield
        return
    replaced: dict[str, Callable[..., Any]] = {"perm2mat": _permutation, "block_butterfly_perm": _order}
    originals = {name: getattr(BOFTLayer, name) for name in replaced}
    for name, stand_in in replaced.items():
        setattr(BOFTLayer, name, stand_in)
    try:
        with _Counted():
            yield
    finally:
        for name, original in originals.items():
            setattr(BOFTLayer, name, original)


def _permutation(layer: Any, indices: Tensor) -> Tensor:
    return torch.empty(len(indices), len(indices))


def _order(layer: Any, n: int, b: int, r: int = 3, n_butterfly_factor: int = 1) -> Tensor:
    if n_butterfly_factor and b * r * 2 > n:
        raise ValueError("Invalid number of blocks!")  # as peft has it
    return torch.arange(n)


class _Counted(TorchFunctionMode):
    """`bincount` of what has no values, and what is put where they say."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.bincount:
            return torch.empty(kwargs["minlength"], dtype=torch.long)
        if func is Tensor.__setitem__ and _mask(args[1]):
            return None
        if func is Tensor.__getitem__ and _mask(args[1]):
            return args[0]  # some of it: no more than all
        return func(*args, **kwargs)


def _mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype is torch.bool and index.is_meta

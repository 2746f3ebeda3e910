"""Refuses in a rehearsal what a device's kernels refuse: fake tensors are multiplied whatever their types.

PyTorch's kernels want one type in a product, a convolution and, on CUDA, in a LayerNorm (`layer_norm_kernel.cu` reads
the weight as the input's type); a CPU normalises half inputs with float32 weights. Autocast works above this: what
it casts arrives cast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from transfer_run.errors import UserError

_WHERE = "backbone.load, hardware.precision, method"
_REMEDY = "set backbone.load=null and hardware.precision=32-true, or bf16-mixed"
_ATEN = torch.ops.aten
_ALL = {
    _ATEN.mm.default: "a matrix product", _ATEN.addmm.default: "a linear layer", _ATEN.bmm.default: "a matrix product",
    _ATEN.baddbmm.default: "a matrix product", _ATEN.mv.default: "a matrix product", _ATEN.dot.default: "a product",
    _ATEN.addmv.default: "a linear layer", _ATEN.addbmm.default: "a matrix product",
    _ATEN.convolution.default: "a convolution",
}  # fmt: skip
_ON_CUDA = {_ATEN.native_layer_norm.default: "a layer norm", _ATEN.native_group_norm.default: "a group norm"}


@contextmanager
def in_words() -> Iterator[None]:
    """Ends a rehearsal as the run would end where PyTorch has no kernel for a type (a Fourier transform of bfloat16) or
    cannot cast it (bfloat16 under float16's autocast).

    Raises:
        UserError: in the place of PyTorch's error on a type.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not re.search(r"nsupported dtype|not implemented for '|Unexpected floating ScalarType", str(error)):
            raise
        raise UserError(f"The run would fail: {error}.", where=_WHERE, remedy=_REMEDY) from error


def check_types(func: Any, args: Sequence[Any], cuda: bool, here: Callable[[], str]) -> None:
    """Raises UserError where the operator is one of those and its tensors are not of one type.

    Args:
        cuda: is a GPU's run rehearsed?
        here: names the module at work.
    """
    what = _ALL.get(func) or (_ON_CUDA.get(func) if cuda else None)
    if what is None:
        return
    types = {value.dtype for value in args if isinstance(value, Tensor)}
    if len(types) > 1:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise UserError(
            f"The run would fail: {what} of {names}" + (f" in {here()}." if here() else "."),
            where=_WHERE,
            remedy=_REMEDY,
        )

"""Turns a built module into one of fake tensors: all shapes, no data, so that a training step can be rehearsed.

Models are built first, for real or on the meta device, with the method attached, and converted afterwards: building
inside the fake mode fails (peft swaps parameters, timm asks tensors for their values).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from transfer_run.errors import UserError
from transfer_run.memory.types import check_types


def fake_mode() -> FakeTensorMode:
    """Fake CPU tensors (fake CUDA ones fail in backward on a machine without CUDA); real constants may mix in."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A fake CPU tensor of the same shape, strides and type."""
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def make_fake(module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> None:
    """Replace every parameter, buffer and plain tensor attribute of `module` by a fake one, in place.

    Tied tensors stay tied; `requires_grad` is kept.

    Args:
        module: built for real or on the meta device.
        dtype: convert floating-point tensors first, as `precision=bf16-true` does (`module.to`).
    """
    if dtype is not None:
        module.to(dtype)
    seen: dict[int, Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            fake = fake_like(tensor, mode)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            seen[id(tensor)] = fake
            originals.append(tensor)
        return seen[id(tensor)]

    originals: list[Tensor] = []  # kept alive, so that no id is given out twice
    for part in module.modules():
        for registry in (part._parameters, part._buffers):
            for name, tensor in registry.items():
                if tensor is not None:
                    registry[name] = convert(tensor)  # type: ignore[assignment]
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                part.__dict__[name] = convert(value)
            elif isinstance(value, tuple) and value and all(isinstance(one, Tensor) for one in value):
                part.__dict__[name] = tuple(convert(one) for one in value)


class AnswersNo(TorchDispatchMode):
    """Fake tensors have no values: a yes-or-no question that depends on one is answered no, a number is 1.

    The questions in the libraries ("is the mask all ones?", "have all answers ended?") then take the road that needs
    the most memory: the mask is made, generation goes on to its full length. For the same reason whatever selects by
    a mask selects everything. A single random number has a value, 1/2: code that draws one compares it with a rate.
    Types are no values: what the device's kernels would refuse is refused here (`memory/types.py`).

    Args:
        cuda: is a GPU's run rehearsed, or a CPU's?
        here: names the module at work.
    """

    def __init__(self, cuda: bool = False, here: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.cuda, self.here = cuda, here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check_types(func, args, self.cuda, self.here)
        if func is torch.ops.aten.rand.default and list(args[0]) in ([], [1]):
            return torch.tensor(0.5).reshape(args[0])
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func is torch.ops.aten.equal.default:
                return False
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
            dtype = args[0].dtype
            return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
        except DynamicOutputShapeException:
            return _all_selected(func, args)


def _all_selected(func: Any, args: Any) -> Any:
    """The largest outcome of an operator whose shape depends on data: all is selected, no two values are alike.

    Raises:
        UserError: an operator that no method of the package uses, and whose largest outcome is not known here.
    """
    if func is torch.ops.aten.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if func is torch.ops.aten.masked_select.default:
        return args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape).numel())
    if func is torch.ops.aten._unique2.default:
        values = args[0].new_empty(args[0].numel())
        return values, args[0].new_empty(args[0].shape, dtype=torch.int64), values.to(torch.int64)
    if func is torch.ops.aten.index.Tensor:
        return func(args[0], [place for index in args[1] for place in _places(index)])
    raise UserError(
        f"A plan cannot tell how much memory {func} takes: the shape of its outcome depends on the data.",
        where="method, backbone",
        remedy="carry the run out: its memory is measured, on a CPU too (hardware=cpu)",
    )


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask over n dimensions as n vectors of positions, one for each of its elements."""
    if index is None or index.dtype is not torch.bool:
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.int64) for _ in index.shape]

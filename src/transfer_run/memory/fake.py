"""Turns a built module into one of fake tensors: all shapes, no data, so that a training step can be rehearsed.

Models are built first, for real or on the meta device, with the method attached, and converted afterwards: building
inside the fake mode fails (peft swaps parameters, timm asks tensors for their values).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_ASKS_FOR_A_VALUE = torch.ops.aten._local_scalar_dense.default


def fake_mode() -> FakeTensorMode:
    """Fake CPU tensors (fake CUDA ones fail in backward on a machine without CUDA); real constants may mix in."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(tensor: Tensor, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> Tensor:
    """A fake CPU tensor of the same shape and strides; floating-point ones in `dtype` if that is given."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="cpu")


def make_fake(module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> None:
    """Replace every parameter, buffer and plain tensor attribute of `module` by a fake one, in place.

    Tied tensors stay tied; `requires_grad` is kept.

    Args:
        module: built for real or on the meta device.
        dtype: convert floating-point tensors, as `precision=bf16-true` does.
    """
    seen: dict[int, Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            fake = fake_like(tensor, mode, dtype)
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


class AnswersNo(TorchDispatchMode):
    """Fake tensors have no values: a yes-or-no question that depends on one is answered no, a number is 1.

    The questions in the libraries ("is the mask all ones?", "have all answers ended?") then take the road that
    needs the most memory: the mask is made, generation goes on to its full length.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func is not _ASKS_FOR_A_VALUE:
                raise
            dtype = args[0].dtype
            return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1

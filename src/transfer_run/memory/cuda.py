"""Makes fake CPU tensors count as a GPU's would.

Three things differ between the two devices, and each is large: dropout keeps a float mask on a CPU and one byte per
element on a GPU; fused attention keeps no matrix on a GPU; and autocast leaves softmax, norms and losses in the half
type on a CPU where it takes them to float32 on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from transfer_run.memory.attention import HALF, attention


def cublas_workspace() -> int:
    """Bytes that cuBLAS takes from the allocator once a thread: 32 MiB on Hopper, else :4096:2:16:8.

    Forward and backward are two threads. The GPU is the one of this machine if there is one. PyTorch before 2.0 left
    this workspace to cuBLAS itself, outside the allocator.
    """
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return 32 * 2**20 if hopper else 8_519_680


_FLOAT32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow", "__pow__", "__rpow__", "softplus", "layer_norm", "native_layer_norm", "group_norm",
    "norm", "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss",
    "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss",
    "multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp",
    "softmax", "log_softmax", "cross_entropy", "normalize", "prod", "cumprod", "cumsum", "sum",
)  # fmt: skip
"""Operators that autocast takes to float32 on CUDA (PyTorch's autocast op reference) and those made of them."""


def _functions(names: tuple[str, ...]) -> set[Any]:
    modules = (torch, F, Tensor)
    return {getattr(module, name) for module in modules for name in names if hasattr(module, name)}


class CountsAsCuda(TorchFunctionMode):
    """Sends dropout, attention and autocast's float32 operators to forms that allocate what CUDA would."""

    def __init__(self) -> None:
        super().__init__()
        self.stand_ins: dict[Any, Callable[..., Tensor]] = {
            F.dropout: dropout,
            torch.dropout: lambda x, p, train: dropout(x, p, train),
            F.scaled_dot_product_attention: attention,
        }
        self.in_float32 = _functions(_FLOAT32)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stand_in = self.stand_ins.get(func)
        if stand_in is not None:
            return stand_in(*args, **kwargs)
        if func in self.in_float32 and torch.is_autocast_enabled("cpu"):
            args = [_to_float32(value) for value in args]
            kwargs = {name: _to_float32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout with the byte mask of the CUDA kernel."""
    if not training or inplace or not 0.0 < p < 1.0:
        return F.dropout(input, p, training, inplace)
    result: Tensor = torch.native_dropout(input, p, True)[0]
    return result


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value

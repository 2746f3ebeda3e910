"""What scaled-dot-product attention keeps on a GPU: not the attention matrix, but q, k, v, output and log-sum-exp.

On fake CPU tensors the operator would be taken apart and keep the matrix, so the plan sends it here. The choice of
kernel follows PyTorch's own order for CUDA (flash, memory-efficient, math); cuDNN's kernel keeps what flash keeps.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["flash", "efficient", "math"]
HALF = (torch.float16, torch.bfloat16)


def cuda_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, grouped: bool) -> Kernel:
    """The kernel that a GPU of the Ampere generation or later takes for these tensors, (B, H, L, D) each."""
    if query.dim() != 4 or query.shape[0] != key.shape[0] or key.shape[:3] != value.shape[:3]:
        return "math"
    same_heads, width = query.shape[1] == key.shape[1], query.shape[-1]
    if not same_heads and not grouped:
        return "math"
    square = not causal or query.shape[2] == key.shape[2]
    if query.dtype in HALF and mask is None and width == value.shape[-1] and width <= 256 and square:
        return "flash"
    step = 8 if query.dtype in HALF else 4
    if same_heads and width % step == 0 and value.shape[-1] % step == 0:
        return "efficient"
    return "math"


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stands in for `F.scaled_dot_product_attention` and allocates what the CUDA kernel would.

    Shapes: query (B, H, L, D), key (B, H, S, D), value (B, H, S, E), mask broadcastable to (B, H, L, S); returns
    (B, H, L, E), whose values mean nothing.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    kernel = cuda_kernel(query, key, value, attn_mask, is_causal, enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.full((), -math.inf, dtype=query.dtype))
    if kernel == "math":
        return _math(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if attn_mask is not None and attn_mask.shape[-1] % 8:  # the efficient kernel reads rows of the mask aligned
        padding = 8 - attn_mask.shape[-1] % 8
        attn_mask = F.pad(attn_mask, [0, padding])[..., :-padding]
    result: Tensor = _Kernel.apply(query, key, value, attn_mask, kernel)
    return result


def _math(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
) -> Tensor:
    """PyTorch's composite form: both factors scaled, the whole matrix, its softmax, a byte mask for dropout."""
    if grouped:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    factor = query.shape[-1] ** -0.25
    if causal:
        mask = torch.zeros(query.shape[-2], key.shape[-2], dtype=query.dtype)
    scores = (query * factor) @ (key.transpose(-2, -1) * factor)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1)
    if dropout > 0.0:
        weights = torch.native_dropout(weights, dropout, True)[0]
    return weights @ value


class _Kernel(torch.autograd.Function):
    """The fused kernels' allocations: kept for backward, and passing ones in backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Kernel) -> Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        stored = length if kernel == "flash" else -(-length // 32) * 32
        log_sum_exp = query.new_empty(rows, heads, stored, dtype=torch.float32)
        seed, offset = query.new_empty((), dtype=torch.int64), query.new_empty((), dtype=torch.int64)
        ctx.save_for_backward(query, key, value, mask, out, log_sum_exp, seed, offset)
        ctx.kernel = kernel
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, mask, *_ = ctx.saved_tensors
        rows, heads, length, width = query.shape
        passing = [query.new_empty(rows, heads, length, dtype=torch.float32)]  # row sums of grad * output
        if query.dtype in HALF:  # the gradient of the queries is summed up in float32
            passing.append(query.new_empty(rows, length, heads, width, dtype=torch.float32))
        if heads != key.shape[1]:  # grouped heads: gradients for every query head first
            passing += [t.new_empty(rows, t.shape[2], heads, t.shape[3]) for t in (key, value)]
        made = [t.new_empty(rows, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in (query, key, value)]
        bias = None
        if mask is not None and ctx.needs_input_grad[3]:
            full = query.new_empty(rows, heads, length, -(-key.shape[2] // 8) * 8)[..., : key.shape[2]]
            bias = full.sum_to_size(mask.shape) if full.shape != mask.shape else full
        del passing
        return (*made, bias, None)

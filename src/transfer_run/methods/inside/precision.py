"""Trained weights beside a frozen stream of half precision (`backbone.load`): float32 themselves, read and added to it.

A stream in float32, autocast and true half precision go through unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def trained_type(weight: Tensor) -> torch.dtype:
    """The type of new trained weights beside the frozen `weight`: steps of a few per cent are lost in bfloat16."""
    return torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype


def in_type_of(other: Tensor, x: Tensor) -> Tensor:
    """x in the type of what it meets; autocast sees to that by itself."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(other.dtype)

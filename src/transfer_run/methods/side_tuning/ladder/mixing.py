"""The small parts of a ladder: its linear maps, and how the side stream takes one in, s <- mix(i, s, ladder)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def small_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map of a ladder: N(0, 0.01^2), bias 0, as LST initialises them."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=0.01)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class GateMix(torch.autograd.Function):
    """g * side + (1 - g) * ladder for a trained scalar g.

    Plain operators keep both streams for g's gradient; it needs only their difference: one tensor instead of two.
    """

    @staticmethod
    def forward(ctx: Any, side: Tensor, ladder: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(side - ladder if gate.requires_grad else None, gate)
        ctx.dtypes = side.dtype, ladder.dtype
        return gate * side + (1 - gate) * ladder

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        difference, gate = ctx.saved_tensors
        side_dtype, ladder_dtype = ctx.dtypes
        grad_gate = None if difference is None else (grad * difference).sum().to(gate.dtype).reshape(gate.shape)
        return (grad * gate).to(side_dtype), (grad * (1 - gate)).to(ladder_dtype), grad_gate


class LearnedGates(nn.Module):
    """LST's gates: g_i = sigmoid(alpha_i / T), one alpha for every layer of the stack, also for dropped ones.

    Args:
        depth: layers of the stack.
        init: initial alpha; 0 starts at g = 0.5.
        temperature: T; 0.1 makes alpha learn ten times faster than its rate suggests.
        lean: keep one tensor a gate for backward instead of two.
    """

    def __init__(self, depth: int, *, init: float = 0.0, temperature: float = 0.1, lean: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((depth,), float(init)))
        self.temperature = temperature
        self.lean = lean

    def gate(self, index: int) -> Tensor:
        return torch.sigmoid(self.alpha[index] / self.temperature)

    def forward(self, index: int, side: Tensor, ladder: Tensor) -> Tensor:
        gate = self.gate(index)
        if self.lean:
            mixed: Tensor = GateMix.apply(side, ladder, gate)
            return mixed
        return gate * side + (1 - gate) * ladder


class ScheduledGate(nn.Module):
    """One gate value for all layers that `start_epoch` moves: linearly from 0.1 to 0.9, or as 1 / (1 + epoch).

    Args:
        kind: `linear` or `hyperbolic` (kept within 0.1 and 0.9).
    """

    value: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("value", torch.ones(()))  # trained from the first `start_epoch` on; saved with the run
        self.start_epoch(0, 1)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        if self.kind == "linear":
            self.value.fill_(min(0.1 + 0.8 * epoch / max(epochs - 1, 1), 0.9))  # runs counted in steps: epochs < 1
        else:
            self.value.fill_(min(max(1 / (1 + epoch), 0.1), 0.9))

    def forward(self, index: int, side: Tensor, ladder: Tensor) -> Tensor:
        return self.value * side + (1 - self.value) * ladder


class Sum(nn.Module):
    """s + ladder, without a gate."""

    def forward(self, index: int, side: Tensor, ladder: Tensor) -> Tensor:
        return side + ladder


def build_mix(kind: str, depth: int, *, init: float, temperature: float, lean: bool) -> nn.Module:
    """`learnable`, `none` (sum), `schedule-linear` or `schedule-hyperbolic`."""
    if kind == "learnable":
        return LearnedGates(depth, init=init, temperature=temperature, lean=lean)
    if kind.startswith("schedule-"):
        return ScheduledGate(kind.removeprefix("schedule-"))
    return Sum()

"""The frozen adapters of T source tasks at one place of a backbone, kept side by side.

    a_t = act(W_down,t z + b_down,t)          (..., T, r)
    o_t = W_up,t a_t + b_up,t                 (..., T, d), the residual left out

All T down-projections are one matrix. Their scaled sum needs no o_t at all: scaling an output is scaling the rows of
its up-projection, so that it is one matrix product, of which backward needs the (..., T r) activations alone:

    sum_t w_t * o_t = [w_1 * W_up,1 ... w_T * W_up,T] [a_1; ...; a_T] + sum_t w_t * b_up,t
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from transfer_run.errors import UserError, nearest_names
from transfer_run.methods.inside.bottleneck import Bottleneck
from transfer_run.methods.inside.precision import trained_type


class SourceAdapters(nn.Module):
    """T adapters of bottleneck r, frozen; empty until `put` fills them.

    Args:
        count, width, bottleneck: T, d and r.
        activation: a name of transformers' ACT2FN.
        like: a weight beside which they stand, for their device and type.

    Raises:
        UserError: the activation has no such name.
    """

    def __init__(self, count: int, width: int, bottleneck: int, *, activation: str = "relu", like: Tensor) -> None:
        super().__init__()
        if activation not in ACT2FN:
            nearest = nearest_names(activation, ACT2FN)
            raise UserError(f"There is no activation {activation!r}.", where="method.activation", nearest=nearest)
        self.activation, self.bottleneck = ACT2FN[activation], bottleneck

        def frozen(*shape: int) -> nn.Parameter:
            empty = torch.zeros(shape, device=like.device, dtype=trained_type(like))
            return nn.Parameter(empty, requires_grad=False)

        self.down, self.down_bias = frozen(count * bottleneck, width), frozen(count * bottleneck)
        self.up, self.up_bias = frozen(count, width, bottleneck), frozen(count, width)

    @torch.no_grad()
    def put(self, number: int, unit: Bottleneck) -> None:
        """Keep a trained adapter as number `number`, its constant or trained scale multiplied in."""
        rows = slice(number * self.bottleneck, (number + 1) * self.bottleneck)
        self.down[rows].copy_(unit.down.weight)
        self.down_bias[rows].copy_(unit.down.bias)
        self.up[number].copy_(unit.up.weight * unit.scale)
        self.up_bias[number].copy_(unit.up.bias * unit.scale)

    def inner(self, z: Tensor) -> Tensor:
        """All activations a_t side by side: (..., d) -> (..., T r)."""
        inner: Tensor = self.activation(F.linear(z, self.down, self.down_bias))
        return inner

    def outputs(self, z: Tensor) -> Tensor:
        """All o_t: (..., d) -> (..., T, d)."""
        inner = self.inner(z).unflatten(-1, (-1, self.bottleneck))
        return torch.einsum("...tr,tdr->...td", inner, self.up) + self.up_bias

    def scaled_sum(self, z: Tensor, scales: Tensor) -> Tensor:
        """sum_t scales_t * o_t without any o_t: (..., d) -> (..., d).

        Args:
            scales: (T, d), or (T, 1).
        """
        up = (scales.unsqueeze(-1) * self.up).transpose(0, 1).flatten(1)
        return F.linear(self.inner(z), up, (scales * self.up_bias).sum(0))

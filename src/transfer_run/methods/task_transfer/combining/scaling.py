"""ScaLearn's combination: every source adapter's output times a learned coefficient, then the sum (section 3).

    Delta = sum_t omega_t * o_t               omega_t in R^d (ScaLearn) or in R (ScaLearnUniform)

Nothing holds the coefficients: neither sign nor sum. Two ablations do: `mean` divides them by their sum over the tasks,
in every dimension, `softmax` takes the softmax over the tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.methods.task_transfer.combining.adapters import SourceAdapters

Constraint = Literal["none", "mean", "softmax"]


def new_omega(count: int, width: int, scale: float, std: float, like: Tensor) -> nn.Parameter:
    """Coefficients (T, d), or (T, 1), normal around scale / T."""
    return nn.Parameter(torch.randn(count, width, device=like.device, dtype=like.dtype) * std + scale / count)


class Scaling(nn.Module):
    """The scaled sum of one layer's adapters, (..., d) -> (..., d).

    Args:
        omega: (T, d) or (T, 1); layers may share one.
        constraint: see the module.
        dropout: of single coefficients in training; what stays is divided by 1 - dropout.
        official: keep every o_t for backward, as the released code does; equal numbers.
    """

    def __init__(self, omega: nn.Parameter, *, constraint: Constraint, dropout: float, official: bool) -> None:
        super().__init__()
        self.omega, self.constraint, self.dropout, self.official = omega, constraint, dropout, official

    def coefficients(self) -> Tensor:
        """What the outputs are multiplied by, (T, d) or (T, 1); a new draw of dropout every time in training."""
        if self.constraint == "mean":
            return self.omega / self.omega.sum(0)
        if self.constraint == "softmax":
            return self.omega.softmax(0)
        return F.dropout(self.omega, self.dropout, self.training)

    def forward(self, adapters: SourceAdapters, z: Tensor) -> Tensor:
        if self.official:
            return (self.coefficients() * adapters.outputs(z)).sum(-2)
        return adapters.scaled_sum(z, self.coefficients())

    def penalty(self) -> Tensor:
        """sum_t (1 - mean_d omega_t)^2 / T, of the coefficients without dropout."""
        return (1 - self.omega.mean(-1)).square().mean()

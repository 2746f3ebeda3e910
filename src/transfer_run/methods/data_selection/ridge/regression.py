"""The inner problem in closed form: the best linear head on synthetic images, asked for real ones.

    F = [f(X), 1]        K_ss = F_s F_s^T        K_rs = F_r F_s^T        lambda = ridge * trace(K_ss), a constant
    pred = K_rs (K_ss + lambda I)^-1 Y_s         loss = mean (pred - Y_r)^2

Lee et al., "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024, arXiv 2310.06511, equations 5, 6.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_bias(features: Tensor) -> Tensor:
    """[f, 1] (n, d + 1): the bias is regularised like every other weight of the head."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def predicted(synthetic: Tensor, targets: Tensor, real: Tensor, ridge: float) -> Tensor:
    """What the best head says of real features (n, d_h).

    Args:
        synthetic: features of the synthetic images (m, d), targets: theirs (m, d_h); gradients pass through both.
        real: features (n, d).
    """
    own, other = with_bias(synthetic), with_bias(real)
    kernel = own @ own.T
    amount = ridge * kernel.detach().diagonal().sum()
    return other @ own.T @ torch.linalg.solve(kernel + amount * torch.eye(len(own), dtype=own.dtype, device=own.device),
                                              targets)  # fmt: skip


def kernel_loss(synthetic: Tensor, targets: Tensor, real: Tensor, answers: Tensor, ridge: float) -> Tensor:
    """Mean squared error of `predicted` against the teacher's answers (n, d_h), a scalar."""
    return (predicted(synthetic, targets, real, ridge) - answers).square().mean()

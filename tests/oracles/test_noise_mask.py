"""One step of the noise-mask policy against numbers of the reference's formula."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.methods.representation.masks.policy import log_density, mixed, moved, objective

ORACLE = "noise_mask_*.npz"
MIX, MOMENTUM = 0.9, 0.99
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def test_mixing_and_the_next_bases(tensors: dict[str, Tensor]) -> None:
    for name in ("alpha", "beta"):
        base, head = tensors[f"base_{name}"], tensors[f"head_{name}"]
        torch.testing.assert_close(mixed(base, head, MIX), tensors[f"new_{name}"], **CLOSE)
        torch.testing.assert_close(
            moved(base, head.mean(0, keepdim=True), MOMENTUM), tensors[f"base_{name}_next"], **CLOSE
        )


def test_densities_loss_and_gradients(tensors: dict[str, Tensor]) -> None:
    leaves = [tensors[name].clone().requires_grad_() for name in ("head_alpha", "head_beta", "logits")]
    alpha, beta = (
        mixed(tensors[f"base_{n}"], leaf, MIX) for n, leaf in zip(("alpha", "beta"), leaves[:2], strict=True)
    )
    density = log_density(alpha, beta, tensors["mask"])
    torch.testing.assert_close(density.detach(), tensors["log_prob"], **CLOSE)
    entropy = F.cross_entropy(leaves[2], tensors["labels"])
    torch.testing.assert_close(entropy.detach(), tensors["ce"].reshape(()), **CLOSE)
    loss, _ = objective(density, entropy, "code")
    torch.testing.assert_close(loss.detach(), tensors["loss"].reshape(()), **CLOSE)
    loss.backward()
    for name, leaf in zip(("grad_head_alpha", "grad_head_beta", "grad_logits"), leaves, strict=True):
        torch.testing.assert_close(leaf.grad, tensors[name], **CLOSE)

"""The outer loss of KRR-ST against numbers of the reference's formula."""

from __future__ import annotations

import torch
from torch import Tensor

from transfer_run.methods.data_selection.ridge.regression import kernel_loss, predicted, with_bias

ORACLE = "dataset_distillation_*.npz"
RIDGE = 1e-6
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
"""The kernel is nearly singular."""


def test_prediction_loss_and_both_gradients(tensors: dict[str, Tensor]) -> None:
    images, targets = (tensors[f"krr_{name}_syn"].clone().requires_grad_() for name in "xy")

    def features(x: Tensor) -> Tensor:
        return torch.tanh(x @ tensors["krr_W"] + tensors["krr_b"])

    own, real = features(images), features(tensors["krr_x_real"])
    kernel = with_bias(own.detach())
    torch.testing.assert_close(RIDGE * (kernel @ kernel.T).trace(), tensors["krr_lambda"].reshape(()), **CLOSE)
    torch.testing.assert_close(predicted(own, targets, real, RIDGE).detach(), tensors["krr_pred"], **CLOSE)
    loss = kernel_loss(own, targets, real, tensors["krr_y_real"], RIDGE)
    torch.testing.assert_close(loss.detach(), tensors["krr_loss"].reshape(()), **CLOSE)
    loss.backward()
    torch.testing.assert_close(images.grad, tensors["krr_grad_x_syn"], **CLOSE)
    torch.testing.assert_close(targets.grad, tensors["krr_grad_y_syn"], **CLOSE)

"""Checks 2, 3, 4 and 6 of the method's spec."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transfer_run.methods.data_selection.ridge.regression import kernel_loss, predicted, with_bias


def case(pairs: int = 5, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and targets of synthetic images, features and answers of real ones, in float64."""
    random = {"dtype": torch.float64}
    return (
        torch.randn(pairs, width, **random), torch.randn(pairs, 4, **random), torch.randn(9, width, **random),
        torch.randn(9, 4, **random),
    )  # fmt: skip


def test_the_kernels_answer_is_that_of_ridge_regression() -> None:
    own, targets, real, _ = case(pairs=12)
    found, seen = with_bias(own), with_bias(real)
    amount = 1e-3 * (found @ found.T).trace()
    weights = torch.linalg.solve(found.T @ found + amount * torch.eye(7, dtype=found.dtype), found.T @ targets)
    torch.testing.assert_close(predicted(own, targets, real, 1e-3), seen @ weights, rtol=1e-8, atol=1e-8)


def test_the_limits_of_the_ridge() -> None:
    own, targets, real, answers = case()
    assert float(kernel_loss(own, targets, own, targets, 1e-14)) < 1e-18
    assert float(predicted(own, targets, real, 1e12).abs().max()) < 1e-9
    assert float(kernel_loss(own, targets, real, answers, 1e12)) == pytest.approx(float(answers.square().mean()))


def test_the_loss_is_quadratic_in_the_targets() -> None:
    own, targets, real, answers = case()
    other = torch.randn_like(targets)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(kernel_loss(own, leaf, real, answers, 1e-6), leaf)
        return found

    mixed = gradient(0.3 * targets + 0.7 * other)
    torch.testing.assert_close(mixed, 0.3 * gradient(targets) + 0.7 * gradient(other), rtol=1e-7, atol=1e-9)
    plain = float(kernel_loss(own, targets, real, answers, 1e-6))
    assert float(kernel_loss(own, 3 * targets, real, 3 * answers, 1e-6)) == pytest.approx(9 * plain, rel=1e-9)


def test_order_and_rotation_of_the_targets_do_not_matter() -> None:
    own, targets, real, answers = case()
    plain = float(kernel_loss(own, targets, real, answers, 1e-6))
    order = torch.randperm(5)
    assert float(kernel_loss(own[order], targets[order], real, answers, 1e-6)) == pytest.approx(plain, rel=1e-7)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert float(kernel_loss(own, targets @ turn, real, answers @ turn, 1e-6)) == pytest.approx(plain, rel=1e-9)


def test_the_ridge_is_a_constant_of_the_gradient() -> None:
    own, targets, real, answers = case()
    leaf = own.clone().requires_grad_()
    (found,) = torch.autograd.grad(kernel_loss(leaf, targets, real, answers, 0.1), leaf)
    fixed = with_bias(own)
    amount = 0.1 * (fixed @ fixed.T).trace()
    other = own.clone().requires_grad_()
    features, seen = with_bias(other), with_bias(real)
    eye = torch.eye(5, dtype=torch.float64)
    answer = seen @ features.T @ torch.linalg.solve(features @ features.T + amount * eye, targets)
    (expected,) = torch.autograd.grad((answer - answers).square().mean(), other)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

"""The terms by their invariances, and how they are joined by hand."""

from __future__ import annotations

import math

import pytest
import torch

from transfer_run.methods.compression.units.terms import divergence, factors, gram, joined, trajectory


def test_what_does_not_move_has_no_term() -> None:
    features, logits = torch.randn(2, 5, 8), torch.randn(2, 3)
    assert float(trajectory(gram(features), gram(features))) == 0
    assert float(divergence(logits, logits, 4.0)) == 0
    assert float(divergence(logits, logits + 3, 4.0)) == pytest.approx(0, abs=1e-5)


def test_the_trajectory_is_blind_to_rotations_scales_and_orders() -> None:
    a, b = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    base = trajectory(gram(a), gram(b))
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    scale = torch.rand(2, 5, 1) + 0.5
    order = torch.randperm(10)
    for other in (
        trajectory(gram(a @ turn), gram(b @ turn)),
        trajectory(gram(a * scale), gram(b)),
        trajectory(gram(a, order), gram(b, order)),
    ):
        torch.testing.assert_close(other, base, rtol=1e-4, atol=1e-5)
    assert trajectory(gram(a), gram(b @ turn)) != base


def test_padding_of_zeros_stays_zero() -> None:
    features = torch.cat([torch.randn(1, 3, 4), torch.zeros(1, 2, 4)], dim=1)
    assert torch.equal(gram(features)[3:], torch.zeros(2, 5))


def test_variants_stand_beside_each_other() -> None:
    dense, variants = torch.randn(2, 5, 8), torch.randn(3, 2, 5, 8)
    together = trajectory(gram(dense), gram(variants))
    assert together.shape == (3,)
    for one, alone in zip(together, variants, strict=True):
        torch.testing.assert_close(one, trajectory(gram(dense), gram(alone)))


def test_fixed_balance_is_the_papers() -> None:
    assert joined([3.0, 0.5], [2.0, 1.0], "fixed", lambda_c=0.1, ratio=10) == [3.2, 0.6]


def test_released_balance_by_hand() -> None:
    """100 / 1: 10^trunc(2 - 1); 1000 / 0.5: 10^trunc(3.30 - 1); 2 / 1: 10^trunc(0.30 - 1), cut towards zero; then the
    mean of the weights so far where kd is the larger or nothing."""
    md, kd = [100.0, 1000.0, 2.0, 1.0, 5.0], [1.0, 0.5, 1.0, 4.0, 0.0]
    mean = (10 + 100 + 1) / 3
    assert joined(md, kd, "code", lambda_c=9, ratio=10) == pytest.approx(
        [100 + 10, 1000 + 50, 2 + 1, 1 + 4 * mean, 5.0]
    )
    assert joined([1.0], [4.0], "code", lambda_c=9, ratio=10) == [5.0]


def test_factors() -> None:
    found = factors(2, 3, last=0.5, all_of=2.0, index_from=100.0)
    torch.testing.assert_close(found, torch.tensor([[200.0, 20.0, 2.0], [100.0, 10.0, 1.0]], dtype=torch.float64))
    assert math.isclose(float(factors(2, 3, last=0.5, all_of=1, index_from=None).sum()), 4.5)

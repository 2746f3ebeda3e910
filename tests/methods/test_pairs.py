"""Losses over pairs of images and texts, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch

from transfer_run.methods.pairs import infonce, same_image, similarities, triplet

COSINES = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4], [0.0, 0.6, 0.7]], dtype=torch.float64)
EACH = torch.arange(3)


def test_infonce_by_hand() -> None:
    rows = [[9.0, 5.0, 1.0], [2.0, 3.0, 4.0], [0.0, 6.0, 7.0]]
    sides = (rows, list(zip(*rows, strict=True)))
    terms = [math.log(sum(map(math.exp, row))) - row[i] for side in sides for i, row in enumerate(side)]
    assert float(infonce(10 * COSINES, EACH)) == pytest.approx(sum(terms) / 6)


def test_triplet_by_hand() -> None:
    """Rows: 0.5 - 0.9, 0.4 - 0.3, 0.6 - 0.7; columns: 0.2 - 0.9, 0.6 - 0.3, 0.4 - 0.7; a margin of 0.2 on each."""
    assert float(triplet(COSINES, EACH)) == pytest.approx((0.3 + 0.1) + 0.5)
    assert float(triplet(COSINES, EACH, margin=0.0)) == pytest.approx(0.1 + 0.3)


def test_another_caption_of_the_same_image_is_no_negative() -> None:
    labels = torch.tensor([4, 7, 4])
    assert same_image(labels).nonzero().tolist() == [[0, 2], [2, 0]]
    changed = COSINES.clone()
    changed[0, 2], changed[2, 0] = 5.0, -5.0
    for loss in (infonce, triplet):
        assert torch.equal(loss(COSINES, labels), loss(changed, labels))
        assert loss(changed, labels) != loss(changed, EACH)


@pytest.mark.parametrize("loss", [infonce, triplet])
def test_a_pair_alone_teaches_nothing(loss: object) -> None:
    one = torch.tensor([[0.3]], requires_grad=True)
    value = loss(one, torch.tensor([0]))  # type: ignore[operator]
    value.backward()
    assert value == 0
    assert one.grad is not None
    assert one.grad.abs().sum() == 0


def test_similarities_are_precise() -> None:
    left, right = torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarities(left, right, torch.tensor(100.0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 100 * left.float() @ right.float().T)

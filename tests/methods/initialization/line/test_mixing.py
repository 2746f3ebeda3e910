"""Mixed images: what each row holds of its partner."""

from __future__ import annotations

import pytest
import torch

from transfer_run.methods.initialization.line.mixing import beta, mixed


@pytest.fixture
def images() -> torch.Tensor:
    """Row r is r everywhere."""
    return torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8).contiguous()


def test_mixup_blends_a_row_with_that_from_the_other_end(images: torch.Tensor) -> None:
    shares = []
    for _ in range(20):
        found, share = mixed(images, mixup=0.8, cutmix=0.0)
        expected = share * images + (1 - share) * images.flip(0)
        torch.testing.assert_close(found, expected)
        shares.append(float(share))
    assert 0 <= min(shares) < 0.35 < 0.65 < max(shares) <= 1


def test_cutmix_pastes_a_box_and_counts_what_is_inside(images: torch.Tensor) -> None:
    areas = set()
    for _ in range(20):
        found, share = mixed(images, mixup=0.0, cutmix=1.0)
        other = found[0, 0] == 3  # of row 0
        assert ((found[0, 0] == 0) | other).all()
        assert float(share) == pytest.approx(1 - float(other.float().mean()))
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns[None, :])  # one box
        areas.add(int(other.sum()))
    assert len(areas) > 5


def test_of_both_either_one(images: torch.Tensor) -> None:
    kinds = set()
    for _ in range(30):
        found, _ = mixed(images, mixup=0.8, cutmix=1.0)
        kinds.add(bool(((found[0] == 0) | (found[0] == 3)).all()))
    assert kinds == {True, False}


def test_beta_has_its_mean_and_spread(images: torch.Tensor) -> None:
    drawn = torch.stack([beta(0.8, images) for _ in range(2000)])
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)

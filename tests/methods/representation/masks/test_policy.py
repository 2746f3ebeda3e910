"""The mask's distribution, its blur, its objective and the mean of the last epochs' weights, piece by piece."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from transfer_run.methods.representation.masks.average import LastEpochs
from transfer_run.methods.representation.masks.picture import save_masks
from transfer_run.methods.representation.masks.policy import (
    NOT_TAKEN,
    blurred,
    drawn,
    log_density,
    moved,
    objective,
    over_image,
)


def test_log_densities_are_those_of_torch() -> None:
    a, b, mask = torch.randn(3, 5), torch.randn(3, 5), torch.rand(3, 5)
    expected = torch.distributions.Beta(a.exp(), b.exp()).log_prob(mask)
    assert torch.allclose(log_density(a, b, mask), expected, atol=1e-5)


def test_samples_are_of_the_distribution_and_inside() -> None:
    a, b = torch.full((20000, 1), math.log(2.0)), torch.full((20000, 1), math.log(6.0))
    found = drawn(a, b)
    assert found.mean().item() == pytest.approx(2 / 8, abs=0.01)
    assert found.var().item() == pytest.approx(2 * 6 / (8**2 * 9), rel=0.1)
    extreme = drawn(torch.full((1, 200), -12.0), torch.full((1, 200), -12.0))
    assert ((extreme > 0) & (extreme < 1)).all()
    assert log_density(torch.zeros(1), torch.full((1,), -12.0), extreme).isfinite().all()


def test_a_sample_carries_no_gradient() -> None:
    a = torch.zeros(2, 3, requires_grad=True)
    assert not drawn(a, a).requires_grad


def test_under_a_flat_distribution_the_factor_is_the_logarithm_of_the_cells() -> None:
    zeros = torch.zeros(3, 16)
    density = log_density(zeros, zeros, torch.rand(3, 16))
    assert density.abs().max() < 1e-5
    loss, factor = objective(density, torch.tensor(2.0), "code")
    assert loss.item() == pytest.approx(2 * math.log(16), rel=1e-5)
    assert factor.item() == pytest.approx(math.log(16), rel=1e-5)


def test_each_row_may_have_its_own_loss() -> None:
    density, losses = torch.randn(3, 4), torch.tensor([1.0, 0.0, 5.0])
    factors = density.exp().sum(1).log()
    assert torch.allclose(objective(density, losses, "per_sample")[0], (factors * losses).mean())
    assert torch.allclose(objective(density, losses.mean(), "code")[0], factors.mean() * losses.mean())


def test_a_constant_stays_under_the_blur() -> None:
    assert torch.allclose(blurred(torch.ones(2, 1, 9, 11), 5, 2.0), torch.ones(2, 1, 9, 11))
    cells = torch.rand(1, 1, 6, 6)
    assert torch.equal(blurred(cells, 1, 2.0), cells)


def test_the_blur_is_that_of_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    cells = torch.rand(2, 1, 16, 14)
    assert torch.allclose(blurred(cells, 13, 6.0), functional.gaussian_blur(cells, 13, 6.0), atol=1e-6)


def test_a_cell_covers_its_pixels_and_a_full_grid_is_taken_as_it_is() -> None:
    mask = torch.rand(2, 4)
    over = over_image(mask, 4, 6, kernel=1, sigma=1.0)
    assert torch.equal(over[0, 0, :2, :3], mask[0, 0].expand(2, 3))
    assert torch.equal(over[1, 0, 2:, 3:], mask[1, 3].expand(2, 3))
    assert torch.equal(over_image(mask, 2, 2, kernel=1, sigma=1.0), mask.reshape(2, 1, 2, 2))
    wide = over_image(torch.rand(3, 64), 32, 32, kernel=5, sigma=2.0)
    assert wide.shape == (3, 1, 32, 32)
    assert ((wide >= 0) & (wide <= 1)).all()


def test_the_base_moves_slowly() -> None:
    assert moved(torch.ones(3), torch.zeros(3), 0.99).tolist() == pytest.approx([0.99] * 3)


@pytest.mark.parametrize(
    ("total", "epoch", "last", "points"),
    [(20, 5, 3, {10, 15, 20}), (18, 5, 3, {10, 15, 18}), (4, 5, 3, {4}), (6, 3, 1, {6}), (3, 0, 2, {3})],
)
def test_the_ends_of_the_last_epochs_count(total: int, epoch: int, last: int, points: set[int]) -> None:
    average = LastEpochs(nn.Linear(2, 2), last)
    average.start(total, epoch)
    assert average.points == points


def test_the_mean_of_these_weights_takes_their_place_at_the_end() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = LastEpochs(model, 2)
    average.start(6, 2)
    for step in range(1, 7):
        with torch.no_grad():
            for tensor in (model[0].weight, model[1].running_var):
                tensor.fill_(float(step))  # type: ignore[operator]
        average.after_step(step, model)
        if step < 6:
            assert (model[0].weight == step).all()
    assert (model[0].weight == 5).all()  # the mean of 4 and 6
    assert (model[1].running_var == 5).all()  # type: ignore[operator]


def test_masks_are_drawn_side_by_side(tmp_path: Path) -> None:
    shots = torch.stack([torch.zeros(4), torch.full((4,), NOT_TAKEN), torch.tensor([0.0, 1.0, 0.0, 0.0])])
    save_masks(shots, tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (144, 2 * 136 + 8)
    assert pixels[20, 20] == 0
    assert pixels[20, 8 + 136 + 100] == 255
    assert pixels[100, 8 + 136 + 100] == 0

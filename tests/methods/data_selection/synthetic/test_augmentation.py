"""Each differentiable operation against its words, one image at a time; gradients pass; a draw repeats itself."""

from __future__ import annotations

import math

import pytest
import torch

from transfer_run.errors import UserError
from transfer_run.methods.data_selection.synthetic import augmentation
from transfer_run.methods.data_selection.synthetic.augmentation import DRAWN, check, choose, draw, varied

IMAGES = 40


def images(side: int = 8) -> torch.Tensor:
    return torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", list(DRAWN))
def test_a_draw_repeats_itself_and_lets_gradients_pass(name: str) -> None:
    plain = images().requires_grad_()
    view = draw(name, plain)
    seen = view(plain)
    assert seen.shape == plain.shape
    assert torch.equal(view(plain), seen)
    assert not torch.equal(seen, plain)
    assert not torch.equal(draw(name, plain)(plain), seen)
    seen.square().sum().backward()
    assert plain.grad is not None
    assert int((plain.grad.abs().sum((1, 2, 3)) > 0).sum()) > 0.9 * IMAGES


def test_a_crop_moves_an_image_and_leaves_zeros() -> None:
    plain = images()
    seen = draw("crop", plain)(plain)
    moves = set()
    for before, after in zip(plain, seen, strict=True):
        padded = torch.nn.functional.pad(before, (1, 1, 1, 1))
        fits = [(y, x) for y in range(3) for x in range(3) if torch.equal(padded[:, y : y + 8, x : x + 8], after)]
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) == 9


def test_cutout_takes_half_of_each_side() -> None:
    plain = torch.ones(400, 1, 8, 8)
    missing = draw("cutout", plain)(plain) == 0
    heights, widths = missing.any(3).sum(2).flatten(), missing.any(2).sum(2).flatten()
    assert {int(n) for n in heights} == {int(n) for n in widths} == {2, 3, 4}  # at the edges less
    assert torch.equal(missing.sum((1, 2, 3)), heights * widths)
    odd = torch.ones(400, 1, 7, 7)
    assert int((draw("cutout", odd)(odd) == 0).any(3).sum(2).max()) == 4


def test_flip_takes_half_of_the_images() -> None:
    plain = images()
    seen = draw("flip", plain)(plain)
    flipped = sum(torch.equal(after, before.flip(2)) for before, after in zip(plain, seen, strict=True))
    kept = sum(torch.equal(after, before) for before, after in zip(plain, seen, strict=True))
    assert flipped + kept == IMAGES
    assert 8 < flipped < 32


def test_color_keeps_to_its_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brightness by u - 1/2, distances from grey times 2 u, distances from the mean times u + 1/2."""
    plain, drawn = images(), iter((0.75, 0.25, 0.8))
    monkeypatch.setattr(augmentation, "_each", lambda seen: torch.full((len(seen), 1, 1, 1), next(drawn)))
    seen = draw("color", plain)(plain)
    for before, after in zip(plain, seen, strict=True):
        expected = before + 0.25
        grey = expected.mean(0)
        expected = (expected - grey) * 0.5 + grey
        expected = (expected - expected.mean()) * 1.3 + expected.mean()
        torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_scales_and_rotations_keep_the_middle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp over x stays one: its slope is that of the factor, or of the turned axis."""
    x = torch.linspace(-1, 1, 9).expand(1, 1, 9, 9)
    monkeypatch.setattr(augmentation, "_each", lambda seen: torch.ones(len(seen), 1, 1, 1))
    seen = draw(name, x)(x)[0, 0]
    angle = math.radians(15)
    slope = float(seen[4, 5] - seen[4, 4]) / 0.25
    assert float(seen[4, 4]) == pytest.approx(0, abs=1e-6)
    assert slope == pytest.approx(1.2 if name == "scale" else math.cos(angle), rel=1e-4)
    if name == "rotate":
        assert float(seen[5, 4] - seen[4, 4]) / 0.25 == pytest.approx(-math.sin(angle), rel=1e-4)


def test_one_operation_a_call_all_of_them_in_their_turn() -> None:
    found = {choose(tuple(DRAWN)) for _ in range(100)}
    assert found == set(DRAWN)
    assert choose(()) is None
    plain = images()
    assert torch.equal(varied(())(plain), plain)
    check(list(DRAWN), "method.augment")
    with pytest.raises(UserError, match="no differentiable operation 'blur'"):
        check(["blur"], "method.augment")

"""Mixed images: each row with its partner, the row at the same place from the batch's other end.

    mixup    share x + (1 - share) x'            share ~ Beta(a, a)          Zhang et al. 2018, arXiv 1710.09412
    cutmix   a box of x' in x                    1 - share: the box's area   Yun et al. 2019, arXiv 1905.04899

Either one with equal chances where both are asked for, as in the released recipe (timm's). Nothing here asks a tensor
for its value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(images: Tensor, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) of the same shape, and the share () of each row in its own mixture.

    Args:
        mixup, cutmix: `a` of Beta(a, a); 0: not this one. At least one is above 0.
    """
    others = images.flip(0)
    if not cutmix:
        return _blended(images, others, mixup)
    if not mixup:
        return _boxed(images, others, cutmix)
    blended, boxed = _blended(images, others, mixup), _boxed(images, others, cutmix)
    first = torch.rand((1,), device=images.device)[0] < 0.5
    return torch.where(first, blended[0], boxed[0]), torch.where(first, blended[1], boxed[1])


def _blended(images: Tensor, others: Tensor, a: float) -> tuple[Tensor, Tensor]:
    share = beta(a, images)
    return (share * images + (1 - share) * others).to(images.dtype), share


def _boxed(images: Tensor, others: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """The box's middle is anywhere, so that a part of it may lie outside; what is inside counts."""
    height, width = images.shape[-2:]
    side = (1 - beta(a, images)).sqrt()
    inside = [_between(side, length, images) for length in (height, width)]
    box = inside[0][:, None] & inside[1][None, :]
    return torch.where(box, others, images), 1 - box.float().mean()


def _between(side: Tensor, length: int, images: Tensor) -> Tensor:
    """Which of `length` places lie in an interval of share `side` around a place drawn at random."""
    middle = (torch.rand((1,), device=images.device)[0] * length).floor()
    half = (side * length).floor() / 2
    places = torch.arange(length, device=images.device)
    return (places >= (middle - half).floor()) & (places < (middle + half).floor())


def beta(a: float, like: Tensor) -> Tensor:
    """One number () drawn from Beta(a, a)."""
    one, other = torch._standard_gamma(torch.full((2,), a, device=like.device, dtype=torch.float32)).unbind()
    return one / (one + other).clamp_min(torch.finfo(torch.float32).tiny)

"""The policy of noise_mask: for every image and every cell of a grid the parameters of a Beta distribution.

    image ──> trunk ──┬─> head_a ──> a ──┐  a' = mix base_a + (1 - mix) a      m ~ Beta(exp a', exp b'), no gradient
                      └─> head_b ──> b ──┴> b' likewise ──────────────────────> (B, G^2)

The bases are running means of a and b over the batches, without gradient: buffers, which are kept and never shipped.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

SHOTS = 8
"""Pictures of the mean mask that are kept over the epochs."""
NOT_TAKEN = -1.0


class Policy(nn.Module):
    """See the module.

    Args:
        trunk: a model of timm by name, from random weights.
        channels: of the images.
        grid: G.
        mix: share of the bases in the parameters.
        momentum: of the bases.
    """

    base_a: Tensor
    base_b: Tensor
    shots: Tensor
    lowest: Tensor

    def __init__(self, trunk: str, channels: int, grid: int, mix: float, momentum: float, device: Any) -> None:
        super().__init__()
        import timm

        self.grid, self.mix, self.momentum = grid, mix, momentum
        cells = grid * grid
        with torch.device(device):
            self.trunk = timm.create_model(trunk, pretrained=False, num_classes=0, in_chans=channels)
            width: Any = self.trunk.num_features
            self.head_a, self.head_b = (mlp(width, cells) for _ in range(2))
            self.register_buffer("base_a", torch.rand(1, cells))
            self.register_buffer("base_b", torch.rand(1, cells))
            self.register_buffer("shots", torch.full((SHOTS, cells), NOT_TAKEN))
            self.register_buffer("lowest", torch.full((), torch.finfo(torch.float32).max))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of both parameters before the bases are mixed in (B, G^2); each head is run once."""
        features = self.trunk(images)
        return self.head_a(features), self.head_b(features)

    def mixed(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """a', b' (B, G^2)."""
        return mixed(self.base_a, a, self.mix), mixed(self.base_b, b, self.mix)

    @torch.no_grad()
    def follow(self, a: Tensor, b: Tensor) -> None:
        """The bases of the next step: moved to the means over the batch, which is that of all processes."""
        for base, values in ((self.base_a, a), (self.base_b, b)):
            mean = values.detach().float().mean(0, keepdim=True)
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
            base.copy_(moved(base, mean, self.momentum))

    @torch.no_grad()
    def watch(self, factor: Tensor) -> None:
        """Remember the smallest factor of the classifier's loss: below zero that is driven uphill."""
        self.lowest.copy_(torch.minimum(self.lowest, factor.detach().float()))

    @torch.no_grad()
    def shoot(self, epoch: int, epochs: int) -> None:
        """Keep the mean of the bases' distribution, (G^2,) in 0..1, for the picture."""
        place = min(epoch if epochs <= SHOTS else epoch * SHOTS // epochs, SHOTS - 1)
        self.shots[place] = torch.sigmoid(self.base_a - self.base_b)[0]  # e^a / (e^a + e^b)


def mlp(width: int, cells: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, twice, and a linear layer to the cells."""
    parts: list[nn.Module] = []
    for _ in range(2):
        parts += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, cells))


def mixed(base: Tensor, values: Tensor, mix: float) -> Tensor:
    """mix base + (1 - mix) values."""
    return mix * base + (1 - mix) * values


def moved(base: Tensor, mean: Tensor, momentum: float) -> Tensor:
    """The next base."""
    return momentum * base + (1 - momentum) * mean


@torch.no_grad()
def drawn(a: Tensor, b: Tensor) -> Tensor:
    """A sample of Beta(exp a, exp b), strictly between 0 and 1, which carries no gradient."""
    one, other = (torch._standard_gamma(each.float().exp()) for each in (a, b))
    small = torch.finfo(torch.float32).eps
    return (one / (one + other).clamp_min(torch.finfo(torch.float32).tiny)).clamp(small, 1 - small)


def log_density(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """log Beta(exp a, exp b) at `mask`, elementwise."""
    alpha, beta = a.exp(), b.exp()
    norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    return (alpha - 1) * mask.log() + (beta - 1) * torch.log1p(-mask) - norm


def objective(log_densities: Tensor, losses: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and the mean factor of the classifier's own.

    Args:
        log_densities: (B, G^2).
        losses: cross-entropy, of the batch (`code`, a scalar) or of each row (`per_sample`, (B,)).
    """
    factors = torch.logsumexp(log_densities, 1)
    if kind == "code":
        return losses * factors.mean(), factors.mean()
    return (losses * factors).mean(), factors.mean()


def over_image(mask: Tensor, height: int, width: int, kernel: int, sigma: float) -> Tensor:
    """(B, G^2) -> (B, 1, H, W): nearest neighbours, then a Gaussian blur with reflected edges."""
    grid = round(mask.shape[1] ** 0.5)
    cells = mask.reshape(len(mask), 1, grid, grid)
    if (grid, grid) != (height, width):
        cells = F.interpolate(cells, size=(height, width), mode="nearest")
    return blurred(cells, kernel, sigma)


def blurred(cells: Tensor, kernel: int, sigma: float) -> Tensor:
    """(B, 1, H, W) under a Gaussian of `kernel` pixels (odd) a side."""
    if kernel == 1:
        return cells
    half = kernel // 2
    places = torch.arange(-half, half + 1, device=cells.device, dtype=cells.dtype)
    weights = torch.softmax(-(places**2) / (2 * sigma**2), 0)
    padded = F.pad(cells, (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))

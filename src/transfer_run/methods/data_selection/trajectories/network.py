"""A network as a function of one vector of all its weights: what a student's steps are differentiated through.

theta (P,) ── cut and shaped, in the order of `parameters()` ──> functional call ──> logits (B, classes)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from transfer_run.backbones.layer_groups import reinitialize, stages
from transfer_run.errors import UserError
from transfer_run.methods.base import Method


class FlatNetwork:
    """A model that is called with its weights as one vector.

    Dropout is off, for experts and students alike: a student's step is a function of its weights and images alone.
    Attention is written out (the math kernel): the fused ones have no second derivative.

    Args:
        method: the backbone under its head; its own weights are those of `load`, and stay when others are called with.

    Raises:
        UserError: it has statistics of batches, which no vector of weights holds.
    """

    def __init__(self, method: Method) -> None:
        self.method = method.eval()
        running = [name for name, buffer in method.named_buffers() if name.endswith("running_mean")]
        if running:
            raise UserError(
                f"{method.backbone.config.get('name')} keeps statistics of batches ({running[0]}, ...), and a "
                "trajectory is one of weights alone.",
                where="backbone",
                remedy="a network with another norm (backbone=convnet3, layers with `norm: instance`)",
            )
        parameters = dict(method.named_parameters())
        self.names = list(parameters)
        self.shapes = [parameter.shape for parameter in parameters.values()]
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.count = sum(self.sizes)

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) with the weights theta (P,)."""
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = functional_call(self.method, self.parts(theta), ({"pixel_values": images},))
        return logits

    def own(self, images: Tensor) -> Tensor:
        """Logits of images with the model's own weights."""
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = self.method({"pixel_values": images})
        return logits

    def parts(self, theta: Tensor) -> dict[str, Tensor]:
        """theta (P,) as the tensors that it is made of, by name: views of it."""
        cut = theta.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, cut, self.shapes, strict=True)}

    @torch.no_grad()
    def vector(self) -> Tensor:
        """The model's own weights (P,), a copy."""
        return torch.cat([parameter.flatten() for parameter in self.method.parameters()])

    def begin(self, seed: int) -> None:
        """Give the model itself fresh weights."""
        reinitialize(self.method.backbone, stages(self.method.backbone), seed)


def perturbed(theta: Tensor, network: FlatNetwork, alpha: float) -> Tensor:
    """theta (P,) with W + alpha (D / |D|) W for every convolution's weights W (four dimensions), D ~ N(0, 1).

    The product is one of elements, the norm that of all elements of D; other tensors stay.
    """
    if alpha == 0:
        return theta
    moved = []
    for part in network.parts(theta).values():
        if part.dim() == 4:
            noise = torch.randn_like(part)
            part = part + alpha * noise / noise.norm() * part
        moved.append(part.flatten())
    return torch.cat(moved)

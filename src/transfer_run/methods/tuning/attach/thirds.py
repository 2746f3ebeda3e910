"""A fused q, k, v projection taken apart, so that a tuner can adapt one of the three and leave the others alone.

qkv (D -> 3 W)    ──>    q, k, v (D -> W each), outputs side by side    ──>    qkv, once it is folded
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Backbone
from transfer_run.methods.inside.targets import Target, in_features, out_features, third_of


class Thirds(nn.Module):
    """What the fused projection computes, by a linear of its own kind for each of the three.

    Args:
        fused: (B, T, D) -> (B, T, 3 W); a torch Linear or transformers' Conv1D.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.v = (_part(fused, third) for third in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    @torch.no_grad()
    def joined(self) -> nn.Module:
        """One projection again."""
        parts = [self.q, self.k, self.v]
        width, along = sum(out_features(part) for part in parts), 1 if isinstance(self.q, Conv1D) else 0
        weight = torch.cat([part.get_parameter("weight") for part in parts], along)
        bias = None if self.q.bias is None else torch.cat([part.get_parameter("bias") for part in parts])
        return _like(self.q, width, weight, bias, self.q.get_parameter("weight").requires_grad)


def split(backbone: Backbone, targets: Iterable[Target]) -> list[str]:
    """Take the fused projections of `targets` apart, in place; where each target is from then on, without repeats."""
    paths = []
    for target in targets:
        path = target.path
        if target.third is not None:
            module = backbone.get_submodule(path)
            if not isinstance(module, Thirds):
                backbone.set_submodule(path, Thirds(module))
            path = f"{path}.{'qkv'[target.third]}"
        paths.append(path)
    return list(dict.fromkeys(paths))


def join(backbone: Backbone) -> None:
    """Put together what `split` took apart."""
    for path, module in list(backbone.named_modules()):
        if isinstance(module, Thirds):
            backbone.set_submodule(path, module.joined())


def _part(fused: nn.Module, third: int) -> nn.Module:
    weight, bias = fused.get_parameter("weight"), fused.bias
    columns = third_of(Target("", 0, "", "", third), out_features(fused))
    own = weight[:, columns] if isinstance(fused, Conv1D) else weight[columns]
    assert bias is None or isinstance(bias, Tensor)
    return _like(fused, out_features(fused) // 3, own, None if bias is None else bias[columns], weight.requires_grad)


def _like(linear: nn.Module, width: int, weight: Tensor, bias: Tensor | None, trained: bool) -> nn.Module:
    """A linear of the same kind with copies of these tensors; no random number is drawn."""
    with torch.device("meta"):
        made: nn.Module = (
            Conv1D(width, in_features(linear))
            if isinstance(linear, Conv1D)
            else nn.Linear(in_features(linear), width, bias=bias is not None)
        )
    made.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=trained)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=trained)
    return made.train(linear.training)

"""The mean of the weights at the ends of the last epochs, running statistics included."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LastEpochs(nn.Module):
    """Sums of a model's tensors, kept beside it until the last step puts their mean in their place.

    Args:
        model: what is averaged; its tensors that are no numbers of floating point stay as they are.
        last: ends of epochs that count; the end of the training is one, in the middle of an epoch too.
    """

    def __init__(self, model: nn.Module, last: int) -> None:
        super().__init__()
        self.last, self.total, self.points = last, 0, frozenset[int]()
        for number, tensor in enumerate(floating(model)):
            self.register_buffer(f"sum_{number}", torch.zeros_like(tensor, dtype=torch.float32, requires_grad=False))

    def start(self, total: int, epoch_steps: int) -> None:
        """Find the steps after which the weights are counted."""
        ends = [*range(epoch_steps, total, epoch_steps), total] if epoch_steps else [total]
        self.total, self.points = total, frozenset(ends[-self.last :])

    @torch.no_grad()
    def after_step(self, step: int, model: nn.Module) -> None:
        if step not in self.points:
            return
        sums, tensors = list(self.buffers()), floating(model)
        for total, tensor in zip(sums, tensors, strict=True):
            total += tensor.float()
        if step == self.total:
            for total, tensor in zip(sums, tensors, strict=True):
                tensor.copy_(total / len(self.points))


def floating(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of floating point, each once, in the order of their names."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [tensor.detach() for _, tensor in sorted(named.items()) if tensor.is_floating_point()]

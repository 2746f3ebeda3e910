"""Critics score how well a student's and a teacher's example belong together; trained with the student, then dropped.

    x (K, L, d_S) ── vector ──┐
                              ├── S[i, j] = f(x_j, y_i) (K, K)      y ── network ── log q(y) (K,)
    y (K, L, d_T) ── vector ──┘

Each side is brought to one vector before the pairs are formed, so K^2 pairs cost K passes; over several devices the
vectors of all of them are paired, which makes K the whole batch and the gradient that of one device.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from transfer_run.methods.distillation.objectives.objectives import wide

FORMS = ("transformer", "mlp")


class _Gather(torch.autograd.Function):
    """Equal numbers of rows of all processes, one below the other; every process's gradient reaches every row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


def of_all_devices(x: Tensor) -> Tensor:
    """Rows of all processes, with gradient; DDP averages gradients, which undoes the sum that gathering makes."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return x
    return _Gather.apply(x.contiguous())


class Critic(nn.Module):
    """Scores all pairs of a batch, and the baseline of the teacher's side.

    Args:
        form: `transformer` reads whole sequences through an encoder a side and averages over tokens; `mlp` reads
            position 0.
        student, teacher: widths of the two hidden states.
        width: of the critic.
        heads, layers: of the encoders; of the MLPs the number of hidden layers.
        separable: False (`mlp` only) scores a pair by a network on the two vectors side by side instead of by their
            inner product; memory grows with K^2 * width.
    """

    def __init__(
        self, form: str, student: int, teacher: int, *, width: int, heads: int, layers: int, separable: bool = True
    ) -> None:
        super().__init__()
        if form == "transformer":
            self.student: nn.Module = _Sequence(student, width, heads, layers)
            self.teacher: nn.Module = _Sequence(teacher, width, heads, layers)
        else:
            self.student = _First(_mlp(student, width, width, layers if separable else 0))
            self.teacher = _First(_mlp(teacher, width, width, layers if separable else 0))
        self.pair = None if separable or form == "transformer" else _mlp(2 * width, width, 1, layers)
        self.baseline = _mlp(teacher, width, 1, 1)
        self.whole = form == "transformer"

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """S (K, K) with the teacher's examples as rows, and log q (K,), both in float32 or better.

        Args:
            student: (B, L, d_S). teacher: (B, L, d_T), without gradient. mask: (B, L).
        """
        x, y = of_all_devices(self.student(student, mask)), of_all_devices(self.teacher(teacher, mask))
        read = _mean(teacher, mask) if self.whole else teacher[:, 0]
        log_q = of_all_devices(self.baseline(read).squeeze(-1))
        if self.pair is None:
            scores = y @ x.mT / math.sqrt(x.shape[-1])
        else:
            count = len(x)
            pairs = torch.cat([x[None].expand(count, -1, -1), y[:, None].expand(-1, count, -1)], dim=-1)
            scores = self.pair(pairs).squeeze(-1)
        return wide(scores), wide(log_q)


class _Sequence(nn.Module):
    """(B, L, d) -> (B, width): a projection, Transformer encoder layers, the mean over real tokens."""

    def __init__(self, given: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.project = nn.Linear(given, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return _mean(self.encoder(self.project(states), src_key_padding_mask=mask == 0), mask)


class _First(nn.Module):
    """(B, L, d) -> (B, width): a network on the state of position 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.network(states[:, 0])


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(states)[..., None]
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def _mlp(given: int, width: int, out: int, layers: int) -> nn.Sequential:
    """`layers` hidden layers of `width` with ReLU between linear maps."""
    sizes = [given, *[width] * layers]
    hidden: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        hidden += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], out))

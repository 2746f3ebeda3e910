"""What a Fisher pass keeps for structural pruning (`pruning.py`): the sums that its decisions read, and nothing else.

    one sample ─ loss ─ backward ─┬─ matrix of a block: squared, added to its sum, let go of at once
                                  └─ token table, patch projection: one number a channel, Σ over the other dimensions

The chain ranks rows of a block's matrices by the columns that the decision before kept, and q, k, v by their product,
so a matrix's sum is needed whole. Of the first weights it ranks channels alone: a token table's sum is (D,), not
(V, D). The gradient of a table that only looks tokens up is that of its few rows; the whole one is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Batch
from transfer_run.memory.tracker import on_host


class FirstWeights:
    """Σ over samples of the squared gradient of a token table (V, D) or patch projection (D, C, p, p), by channel.

    Args:
        model: what holds the parameter; its lookups are followed, other uses (a tied head) give a whole gradient.

    Attributes:
        total: (D,) float64 in CPU memory.
    """

    def __init__(self, parameter: nn.Parameter, model: nn.Module) -> None:
        self.parameter = parameter
        width = parameter.shape[1] if parameter.dim() == 2 else parameter.shape[0]
        self.total = torch.zeros(width, dtype=torch.float64)
        on_host([self.total])
        self.lookups = [m for m in model.modules() if isinstance(m, nn.Embedding) and _looks_up(m, parameter)]
        self.paddings = {m.padding_idx for m in self.lookups if m.padding_idx is not None}
        self.rows: list[tuple[Tensor, Tensor]] = []  # token ids (N,), the gradient-taking copy of their rows (N, D)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Lookups give copies that take the gradient in the table's place."""
        handles = [module.register_forward_hook(self._look_up) for module in self.lookups]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.rows.clear()

    def _look_up(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        copy = output.detach().requires_grad_()
        self.rows.append((args[0], copy))
        return copy

    def inputs(self) -> list[Tensor]:
        """What backward shall reach for this parameter."""
        return [self.parameter, *(copy for _, copy in self.rows)]

    def add(self) -> None:
        """Add the sample whose backward has ended, and let its gradients go."""
        whole, self.parameter.grad = self.parameter.grad, None
        looked_up = self._rows()
        if looked_up is not None:
            whole = _summed_by_token(*looked_up) if whole is None else whole.index_add_(0, *looked_up)
        if whole is None:
            return
        whole = whole.float()
        others = [0] if self.parameter.dim() == 2 else list(range(1, self.parameter.dim()))
        self.total += whole.mul_(whole).sum(others, dtype=torch.float64).to(self.total.device)

    def _rows(self) -> tuple[Tensor, Tensor] | None:
        """Ids (N,) and gradients (N, D) of all that was looked up; a padding id has none, as in `nn.Embedding`."""
        looked_up = [(ids.reshape(-1), copy.grad) for ids, copy in self.rows if copy.grad is not None]
        self.rows.clear()
        if not looked_up:
            return None
        ids = torch.cat([ids for ids, _ in looked_up])
        found = torch.cat([gradient.reshape(-1, gradient.shape[-1]) for _, gradient in looked_up])
        for padding in self.paddings:
            found.masked_fill_(ids.eq(padding)[:, None], 0)
        return ids, found


def _looks_up(module: nn.Embedding, parameter: nn.Parameter) -> bool:
    """An embedding of the library's own on this table; one that scales what it reads, say, has a forward of its own."""
    if type(module) is not nn.Embedding or module.weight is not parameter:
        return False
    return module.max_norm is None and not module.scale_grad_by_freq


def _summed_by_token(ids: Tensor, gradients: Tensor) -> Tensor:
    """(N, D): each token's rows (N, D) added up into one; the rest zeros, so that shapes never depend on values."""
    ordered, order = ids.sort(stable=True)
    group = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long().cumsum(0)])
    return torch.zeros_like(gradients).index_add_(0, group, gradients[order])


def squared_gradients(
    loss: Callable[[Batch], Tensor], matrices: Mapping[str, nn.Parameter], batches: Iterator[Batch], samples: int,
    firsts: Mapping[str, FirstWeights] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Diagonal Fisher information: the sum over samples of the squared gradient of the sample's loss (not divided).

    A gradient is squared, added and let go of as soon as backward has made it, and the sums stay in CPU memory: the
    device holds the weights, one sample's activations and one gradient at a time. No other gradient is computed.

    Args:
        loss: the loss of one batch; batches hold one sample each.
        matrices: what to differentiate by; may be frozen, and is so again afterwards.
        samples: at most so many are drawn.
        firsts: the weights of which the channels alone count, by name.

    Returns:
        float32 of the matrices' shapes, float64 (D,) of the first weights.
    """
    firsts = firsts or {}
    parameters = {**matrices, **{name: first.parameter for name, first in firsts.items()}}
    total: dict[str, Tensor] = {name: first.total for name, first in firsts.items()}
    was = {name: p.requires_grad for name, p in parameters.items()}
    with ExitStack() as stack, torch.enable_grad():
        for name, p in parameters.items():
            stack.callback(p.requires_grad_, was[name])
            p.requires_grad_(True)
        for name, p in matrices.items():
            total[name] = torch.zeros(p.shape, dtype=torch.float32)
            on_host([total[name]])
            stack.callback(p.register_post_accumulate_grad_hook(partial(_add_squared, total[name])).remove)
        for first in firsts.values():
            stack.enter_context(first.followed())
        for _, batch in zip(range(samples), batches, strict=False):
            found = loss(batch)
            others = [tensor for first in firsts.values() for tensor in first.inputs()]
            found.backward(inputs=[*matrices.values(), *others])
            for first in firsts.values():
                first.add()
    return total


def _add_squared(total: Tensor, parameter: Tensor) -> None:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    gradient = gradient.float()
    total += gradient.mul_(gradient).to(total.device)

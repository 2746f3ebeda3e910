"""Long work before the first step: small trainings and passes over data that `Method.prepare` carries out.

    context.work.fit("coder", loss, batches, steps, optimizers, modules) ─┐
    context.work.loop("search", step, steps, state) ──────────────────────┴─> step 0, 1, ..., saved, resumed, watched
    context.work.follow("Fisher pass", batches, total) ─────────────────────> the same batches, with progress

In a run (`experiment/training/work.py`) a loop survives signals and kills, goes on bit for bit, ends when its loss is
no number and tells how far it is. `Work` itself only loops; `Rehearsed` takes two steps, for `Method.rehearse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transfer_run.backbones.base import Batch
from transfer_run.hardware.steps import Steps
from transfer_run.memory.tracker import followed_at_first, follows_host

Item = TypeVar("Item")


def alone(tensor: Tensor) -> Tensor:
    """What a pass keeps of a batch: a part of a larger tensor would keep all of it, so of one a copy is kept."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def as_loaded(model: nn.Module, stored: Iterable[Tensor] | None = None) -> list[Tensor]:
    """For `Method.rehearse`: what a source's finished model of the same shapes holds once it is loaded. It is read
    from its file tensor by tensor in CPU memory, so there the largest one is there twice for a moment.

    Args:
        stored: what the source's file holds; None: all of it.
    """
    own = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    loaded = [torch.empty_like(tensor) for tensor in own]
    if follows_host():
        torch.empty_like(max(own if stored is None else stored, key=lambda tensor: tensor.nbytes))
    return loaded


class Stateful(Protocol):
    """What tells and takes all that it is, as plain containers of tensors."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


State = Mapping[str, Stateful | Tensor]
"""All that a loop changes and goes on from, by name: modules, optimizers, and tensors that are written in place."""

TO_REHEARSE = 2
"""Steps of a rehearsal: optimizer states are there in the second."""


class Work:
    """Loops that are carried out from their first step to their last, in memory alone."""

    def loop(self, name: str, step: Callable[[int], Tensor | None], steps: int, state: State) -> None:
        """Call `step(0)`, ..., `step(steps - 1)`.

        In a run every step begins with random numbers of its own, a function of (seed, name, step), and afterwards
        they are as before the loop; so a loop that was stopped goes on with the step after the last that was saved.

        Args:
            name: of the loop, the only one of that name in the run.
            step: one step; its loss, or None, is watched.
            state: see `State`. What is not in it must not change from step to step.

        Raises:
            Preempted, KeyboardInterrupt: a signal asked the run to stop, after saving.
            RunFailed: the loss or the state is no number any more.
        """
        for number in followed_at_first(range(steps)):
            step(number)

    def fit(
        self,
        name: str,
        loss: Callable[[Batch], Tensor],
        batches: Callable[[int], Iterator[Batch]],
        steps: int,
        optimizers: Mapping[str, Optimizer],
        modules: Mapping[str, nn.Module],
        *,
        clip: float | None = None,
        factor: Callable[[int], float] | None = None,
    ) -> None:
        """Train `modules` on `loss` for so many steps, all optimizers at once.

        Args:
            name: as in `loop`.
            batches: number of the first step -> its batch and those that follow (`context.endless`).
            clip: norm of each optimizer's gradients.
            factor: of the learning rates at step 0, 1, ...; None: they stay.
        """
        taken = Steps(optimizers, clip=clip)
        rates = {name: [group["lr"] for group in one.param_groups] for name, one in optimizers.items()}
        source: Iterator[Batch] | None = None

        def step(number: int) -> Tensor:
            nonlocal source
            source = batches(number) if source is None else source
            if factor is not None:
                for key, optimizer in optimizers.items():
                    for group, rate in zip(optimizer.param_groups, rates[key], strict=True):
                        group["lr"] = rate * factor(number)
            found = loss(next(source))
            taken.backward(found)
            taken.step()
            return found.detach()

        self.loop(name, step, steps, {**modules, **optimizers})

    def follow(self, name: str, items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
        """The same items; in a run it is told now and then how many of `total` are done."""
        yield from items

    def forget(self, name: str) -> None:
        """What the loop of this name left has been written elsewhere: its saved state is let go of."""


class Rehearsed(Work):
    """The same work for the memory plan: `TO_REHEARSE` steps, on tensors without values."""

    def loop(self, name: str, step: Callable[[int], Tensor | None], steps: int, state: State) -> None:
        for number in range(min(steps, TO_REHEARSE)):
            step(number)

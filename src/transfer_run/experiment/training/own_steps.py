"""A method's own steps in the trainer: its precision, its callbacks, and gradients averaged over the processes.

Lightning calls this manual optimization. What it leaves to the module is here: an update counts once a batch however
many optimizers take part, gradients are summed over `trainer.accumulate` batches and clipped, schedules move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from transfer_run.hardware.steps import Steps
from transfer_run.memory.callback import MemoryCallback


class TrainerSteps(Steps):
    """The steps of one process of a run.

    Args:
        module: set up for training, its optimizers and schedules configured.
        optimizers: by name.
        settings: the composed `trainer` node.
        intervals: how often the schedule of each optimizer moves, in their order: `step`, `epoch`.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        optimizers: Mapping[str, Optimizer],
        settings: Mapping[str, Any],
        intervals: Iterable[str],
    ) -> None:
        super().__init__(
            optimizers,
            clip=settings["gradient_clip"],
            accumulate=settings["accumulate"],
            grads_to_none=settings["grads_to_none"],
            use_cache=settings["use_cache_in_training"],
        )
        self.module, self.intervals, self.done = module, tuple(intervals), module.global_step

    def carry_out(self, method: Any, batch: Any, *, last: bool = True) -> Tensor:
        loss = super().carry_out(method, batch, last=last)
        if last:
            progress = self.module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            progress.increment_ready()
            progress.increment_completed()
            self.move_schedules("step")
        return loss

    def _backward(self, loss: Tensor, inputs: list[Tensor] | None) -> None:
        strategy: Any = self.module.trainer.strategy
        with strategy.block_backward_sync() if self.module.trainer.world_size > 1 else nullcontext():
            self.module.manual_backward(loss, inputs=inputs)

    def _update(self, name: str) -> None:
        if self.module.trainer.world_size > 1:
            average_gradients(self.parameters(name))
        optimizer = self.optimizers[name]
        self.module.trainer.strategy.optimizer_step(optimizer, lambda: None)  # clipped in `on_before_optimizer_step`

    def _let_go(self, name: str) -> None:
        super()._let_go(name)
        for callback in self.module.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MemoryCallback):
                callback.mark("forward")  # the update is over

    def move_schedules(self, interval: str) -> None:
        """The schedules that move every `step`, or every `epoch`, move on."""
        schedulers: Any = self.module.lr_schedulers()
        made = schedulers if isinstance(schedulers, list) else [schedulers]
        for scheduler, one in zip(made, self.intervals, strict=True):
            if one == interval:
                scheduler.step()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gradients become their mean over the processes; one that no process has stays none.

    A step of a method's own may go backward several times, or to some parameters alone, which the hooks of DDP do not
    follow.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    there = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    dist.all_reduce(there)
    for parameter, count in zip(trained, there.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

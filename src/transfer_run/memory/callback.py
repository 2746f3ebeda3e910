"""Measures a run's peak memory while Lightning trains it: a few batches are followed closely, the rest run untouched.

Method.prepare ─> prepare                           all of it
train batch ──> forward ──> backward ──> step      the first `tracked_steps` optimizer steps (two, so that the
validation / test batch ──> evaluation             optimizer's states are there), the first batch of each
                                                   evaluation, and every later batch larger than all before

A checkpoint holds what was measured until then: a run that goes on reports what an undisturbed one does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from transfer_run.memory.account import joined
from transfer_run.memory.meters import PREPARE, CudaMeter, Meter, TrackerMeter
from transfer_run.memory.report import explain_difference


class MemoryCallback(Callback):
    """Peak memory by phase and kind, on any device.

    Args:
        tracked_steps: optimizer steps that are followed from the start; 0: no training, evaluations alone.
    """

    def __init__(self, tracked_steps: int = 2) -> None:
        self.tracked_steps = tracked_steps
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of the largest batch followed, by split
        self._meter: Meter | None = None
        self._earlier: dict[str, Any] = {}  # what processes before this one measured
        self._open = False

    # ---- the result
    def result(self) -> dict[str, Any]:
        """The `memory` node of `result.json`, in bytes; empty when nothing was measured."""
        if self._meter is None:
            return dict(self._earlier)
        return joined(self._earlier, self._meter.report().as_dict(self._meter.source))

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.result(), "shapes": self.shapes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = joined(state_dict["measured"], self._earlier)
        self.shapes = {**self.shapes, **state_dict["shapes"]}

    def compare(self, plan: Any) -> str:
        """Prediction beside measurement in words, with the reason where they differ by more than 2 %.

        Args:
            plan: `experiment.plan.Plan` of the same run.
        """
        planned = {name: tuple(shape) for name, (shape, _) in plan.shapes.items()}
        return explain_difference(plan.memory, self.result(), planned, self.shapes, plan.left_out)

    # ---- before training
    @contextmanager
    def preparing(self, model: nn.Module, device: torch.device) -> Iterator[None]:
        """Follows what is done before the first step (`Method.prepare`) on the model's device."""
        self._meter = CudaMeter(model) if device.type == "cuda" else TrackerMeter(model)
        self._begin(PREPARE, {}, [])
        try:
            yield
        finally:
            gc.collect()  # what only circles hold is no part of the need, whenever Python would have come by
            self._end()

    # ---- training
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        model, on_gpu = getattr(pl_module, "method", pl_module), trainer.strategy.root_device.type == "cuda"
        if self._meter is None or isinstance(self._meter, CudaMeter) != on_gpu:  # or prepared on another device
            self._meter = CudaMeter(model) if on_gpu else TrackerMeter(model)
        replay = getattr(getattr(model, "backbone", None), "replay", None)
        if isinstance(self._meter, TrackerMeter) and replay is not None:
            self._meter.data = list(replay.store.tensors())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        early = trainer.global_step < self.tracked_steps
        if self.tracked_steps and (self._larger("train", batch) or early):
            self._begin("forward", batch, trainer.optimizers)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.mark("backward")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.mark("step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end()

    # ---- evaluation
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._larger("validation", batch):
            self._begin("evaluation", batch, trainer.optimizers)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._end()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._larger("test", batch):
            self._begin("evaluation", batch, trainer.optimizers)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    # ---- episodes
    def _larger(self, split: str, batch: Any) -> bool:
        """Is this batch larger, in elements, than all of its split so far? The first one is."""
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        before = self.shapes.get(split)
        if before is not None and _elements(shapes) <= _elements(before):
            return False
        self.shapes[split] = shapes
        return True

    def _begin(self, phase: str, batch: Any, optimizers: list[Optimizer]) -> None:
        assert self._meter is not None
        self._meter.open(phase, [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)], optimizers)
        self._open = True

    def mark(self, phase: str) -> None:
        """What follows is of this phase."""
        if self._open and self._meter is not None:
            self._meter.mark(phase)

    def _end(self) -> None:
        if self._open and self._meter is not None:
            self._meter.close()
        self._open = False


def _elements(shapes: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for shape in shapes.values():
        count = 1
        for size in shape:
            count *= size
        total += count
    return total

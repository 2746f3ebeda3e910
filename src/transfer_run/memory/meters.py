"""Two ways to measure a real run: the tracker, tensor by tensor (CPU), and the CUDA allocator's own counters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from transfer_run.memory.account import KINDS, MemoryReport, PhasePeak
from transfer_run.memory.allocator import cuda_block
from transfer_run.memory.module_names import ModuleNames
from transfer_run.memory.tracker import MemoryTracker

PREPARE = "prepare"
"""The phase of `Method.prepare`; what is made in it counts as `other`: copies, other models, statistics, pieces."""


class Meter(Protocol):
    """What the callback asks of a way to measure. An episode (`open` to `close`) is one batch that is followed."""

    source: str

    def open(self, phase: str, batch: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> None: ...
    def mark(self, phase: str) -> None: ...
    def close(self) -> None: ...
    def report(self) -> MemoryReport: ...


class TrackerMeter:
    """Follows the storages of real tensors; between episodes nothing is followed and nothing is slowed down.

    Args:
        model: its parameters, buffers and gradients are known by name.
        data: tensors that hold data, not the run's memory (stored taps); they are not counted.
    """

    source = "tracker"

    def __init__(self, model: nn.Module, data: Iterable[Tensor] = ()) -> None:
        self.model, self.data = model, list(data)
        self.tracker = MemoryTracker(module_names=ModuleNames(model))
        self._batch: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        self.active = False

    def open(self, phase: str, batch: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> None:
        self._batch, self._optimizers = list(batch), list(optimizers)
        self.tracker.__enter__()
        self.active = True
        self.tracker.hold_model(self.model)
        self.tracker.forget(self.data)
        self._hold_states()
        self.tracker.hold(self._batch, "inputs")
        self.tracker.mark(phase)

    def mark(self, phase: str) -> None:
        """A phase that follows backward knows the gradients; see `MemoryTracker.hold_gradients`."""
        if self.active:
            self.tracker.hold_gradients(self.model)
            self.tracker.mark(phase)

    def close(self) -> None:
        """The batch counts no longer: a dataset that keeps it in memory is no part of the run's need."""
        if self.active:
            self._hold_states()
            self.tracker.drop(self._batch)
            self.tracker.drop_scalars()
            self._batch = []
            self.tracker.mark("between")
            self.tracker.__exit__(None, None, None)
            self.active = False

    def report(self) -> MemoryReport:
        return self.tracker.report()

    def _hold_states(self) -> None:
        for optimizer in self._optimizers:
            self.tracker.hold_optimizer(optimizer)


class CudaMeter:
    """Reads the allocator's peak at the end of every phase; between episodes one counter runs on.

    The counters know no kinds: parameters, gradients (those that are there when the phase begins), optimizer states
    and inputs are added up from their sizes, and the rest of a peak counts as activations.

    Args:
        model: on a CUDA device.
        cuda: `torch.cuda`, or what stands in for it in tests.
    """

    source = "cuda"

    def __init__(self, model: nn.Module, cuda: Any = torch.cuda) -> None:
        self.model, self.cuda = model, cuda
        self.phases: dict[str, PhasePeak] = {}
        self._phase = "between"
        self._known = dict.fromkeys(KINDS, 0)
        self._batch: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        cuda.reset_peak_memory_stats()

    def open(self, phase: str, batch: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> None:
        self._batch, self._optimizers = list(batch), list(optimizers)
        self.mark(phase)

    def mark(self, phase: str) -> None:
        self._note()
        self._phase = phase
        self._known = self._sizes()
        self.cuda.reset_peak_memory_stats()

    def close(self) -> None:
        self.mark("between")
        self._batch = []

    def report(self) -> MemoryReport:
        self._note()
        phase = max(self.phases, key=lambda name: self.phases[name].bytes)
        highest = self.phases[phase]
        return MemoryReport(highest.bytes, phase, "", dict(highest.by_kind), dict(self.phases))

    def _note(self) -> None:
        peak = int(self.cuda.max_memory_allocated())
        if self._phase not in self.phases or peak > self.phases[self._phase].bytes:
            known = dict(self._known)
            rest = "other" if self._phase == PREPARE else "activations"
            known[rest] = max(0, peak - sum(known.values()))
            self.phases[self._phase] = PhasePeak(peak, "", known)

    def _sizes(self) -> dict[str, int]:
        states = [leaf for optimizer in self._optimizers for leaf in tree_leaves(list(optimizer.state.values()))]
        parameters = list(self.model.parameters())
        return dict.fromkeys(KINDS, 0) | {
            "parameters": _blocks([*parameters, *self.model.buffers()]),
            "gradients": _blocks(p.grad for p in parameters if p.grad is not None),
            "optimizer": _blocks(s for s in states if isinstance(s, Tensor) and s.device.type != "cpu"),
            "inputs": _blocks(self._batch),
        }


def _blocks(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages below `tensors` as the allocator counts them, each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(cuda_block(size) for size in storages.values())

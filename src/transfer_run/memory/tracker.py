"""Follows every storage from allocation to release, and knows what it is for.

    with MemoryTracker() as tracker:              ops ──> storages ──> allocations (born, bytes, kind, phase, module)
        tracker.mark("forward")                   weakref.finalize ──> released (died)
        loss = ...
        tracker.mark("backward")                  report: the set alive at the peak, rebuilt from born and died
        loss.backward()

The same class follows real CPU tensors (a measurement) and fake ones (a prediction). A storage counts once however
many tensors view it; in-place operations count nothing; what a storage is for may become known later (a gradient is
one when it lands in `.grad`), so the live set is not copied at every new peak but rebuilt afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from transfer_run.memory.account import SETUP, Allocation, MemoryReport, by_kind, report
from transfer_run.memory.allocator import exact
from transfer_run.memory.module_names import ModuleNames, leaf_shapes

B = TypeVar("B", bound=Mapping[str, Tensor])

DEFAULT_KIND = {"forward": "activations", "backward": "activations", "evaluation": "activations"}
"""What a new storage is taken for in a phase until something is known of it; `other` elsewhere."""

FEW = 50_000
"""Allocations kept in the books before those are looked for that no peak needs."""

_DEVICE = torch.ops.prim.device.default
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_AUTOCAST = torch._C.DispatchKey.AutocastCPU
_ADD_INTO = torch.ops.aten.add_.Tensor


def followed_in_part(batches: Iterable[B]) -> Iterator[B]:
    """The same batches; a tracker that is at work follows what is done with the first two and with every one that is
    larger than all before, as in training. Reading them is not followed: data are no part of what a run needs."""
    trackers, largest, iterator = list(_RESIZES.trackers), 0, iter(batches)
    try:
        for number in count():
            for tracker in trackers:
                tracker.pause()
            batch = next(iterator, None)
            if batch is None:
                return
            elements = sum(tensor.numel() for tensor in batch.values())
            for tracker in trackers if number < 2 or elements > largest else ():
                tracker.go_on()
            largest = max(largest, elements)
            yield batch
    finally:
        for tracker in trackers:
            tracker.go_on()


def followed_at_first(steps: Iterable[int], count: int = 2) -> Iterator[int]:
    """The same steps of long work; a tracker that is at work follows the first ones: later ones need no more."""
    trackers = list(_RESIZES.trackers)
    try:
        for taken, step in enumerate(steps):
            for tracker in trackers if taken == count else ():
                tracker.pause()
            yield step
    finally:
        for tracker in trackers:
            tracker.go_on()


def on_host(tensors: Iterable[Tensor]) -> None:
    """Say of tensors in CPU memory that a GPU's does not hold them: a plan of a GPU cannot tell, all its tensors are
    fake ones of the CPU."""
    kept = list(tensors)
    for tracker in _RESIZES.trackers:
        if tracker.rounding is not exact:
            tracker.forget(kept)


def follows_host() -> bool:
    """Does a tracker that is at work follow what lies in CPU memory? One that plans a GPU does not."""
    return any(tracker.rounding is exact for tracker in _RESIZES.trackers)


class _Autocast(TorchFunctionMode):
    """Is autocast on where the functions are called? A dispatch mode works below autocast and always finds it off."""

    enabled = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.enabled = torch.is_autocast_enabled("cpu")
        return func(*args, **(kwargs or {}))


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all storages alive, by kind, phase and module.

    Args:
        rounding: bytes asked for -> bytes counted (`memory/allocator.py`).
        module_names: names the module that works; None: modules stay unnamed.

    A tracker may be left and entered again (Lightning callbacks do, for a few steps of a long run): releases are seen
    in between, allocations are not, so name what is there on entering (`hold`).
    """

    def __init__(self, rounding: Callable[[int], int] = exact, module_names: ModuleNames | None = None) -> None:
        super().__init__()
        self.rounding = rounding
        self.module_names = module_names
        self._autocast = _Autocast()
        self._paused = False
        self.current = 0
        self.allocations: list[Allocation] = []
        self.peaks: dict[str, tuple[int, int, str]] = {}  # phase -> bytes, event, module
        self._before_backward: tuple[int, int] | None = None  # bytes, event: the most that was there when one began
        self._live: dict[int, Allocation] = {}  # by the address of the storage
        self._names: dict[int, str] = {}  # of parameters, by id
        self._clock, self._limit = 0, FEW
        self._phase = SETUP

    # ---- what is told to the tracker
    def mark(self, phase: str) -> None:
        """From here on everything happens in `phase`."""
        self._phase = phase
        if phase == "backward":
            self._before_backward = max(self._before_backward or (0, 0), (self.current, self._clock))
        self._note_peak("")

    def hold(self, tensors: Iterable[Tensor | None], kind: str, module: str = "") -> None:
        """These tensors are of this kind: counted from now on if they were not yet, else renamed, also in the past."""
        for tensor in tensors:
            if tensor is None:
                continue
            known = self._live.get(tensor.untyped_storage()._cdata)
            if known is None:
                self._add(tensor, kind, module)
            else:
                known.kind = kind
                known.module = module or known.module

    def hold_model(self, model: torch.nn.Module) -> None:
        """Parameters and buffers, and the gradients that are there."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._names[id(tensor)] = name
            self.hold([tensor], "parameters", name)
        self.hold_gradients(model)

    def hold_gradients(self, model: torch.nn.Module) -> None:
        """What lies in `.grad` is a gradient; call it when backward has ended."""
        for name, parameter in model.named_parameters():
            self.hold([parameter.grad], "gradients", name)

    def hold_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """What lies in the optimizer's state; call it when a step has ended."""
        for parameter, state in optimizer.state.items():
            tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
            self.hold(tensors, "optimizer", self._names.get(id(parameter), ""))

    def backdate(self, kind: str) -> None:
        """Count the living tensors of this kind as if they had been there from the start."""
        for allocation in self.allocations:
            if allocation.kind == kind and allocation.died is None and allocation.born > 0:
                for phase, (size, event, module) in self.peaks.items():
                    if event < allocation.born:
                        self.peaks[phase] = (size + allocation.bytes, event, module)
                allocation.born = 0

    def reserve(self, size: int, what: str) -> None:
        """Memory that no tensor stands for and that stays (a library's workspace)."""
        self._book(size, "other", what, (size,), torch.uint8)

    def drop(self, tensors: Iterable[Tensor]) -> None:
        """These tensors are done with: they count no more, though they may live on, until they are used again."""
        for tensor in tensors:
            self._release(tensor.untyped_storage()._cdata)

    def drop_scalars(self) -> None:
        """Single values that outlive a batch (its loss, what was logged of it) count no more: a run that goes on from
        a checkpoint has none of them."""
        for key, allocation in list(self._live.items()):
            if allocation.shape == () and allocation.kind in ("activations", "other"):
                self._release(key)

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """These tensors do not count from here on (they lie on another device than the one predicted, or in files)."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._live:
                self._release(storage._cdata)
            else:
                weakref.finalize(storage, _released, weakref.ref(self), storage._cdata).atexit = False
            empty = Allocation(0, storage.nbytes(), self._clock, "other", self._phase, "", (), tensor.dtype)
            self._live[storage._cdata] = empty

    def reset(self) -> None:
        """Forget the peaks and whatever has died; go on from what is alive."""
        self.allocations = [a for a in self.allocations if a.died is None]
        self.peaks, self._before_backward = {}, None
        self._note_peak("")

    def report(self) -> MemoryReport:
        """What was alive at the peak, at each phase's own, and when backward began."""
        found = report(self.allocations, self.peaks)
        if self._before_backward is not None:
            event = self._before_backward[1]
            found.kept = by_kind(a for a in self.allocations if a.alive_at(event))["activations"]
        return found

    def pause(self) -> None:
        """Follow nothing for a while, at no cost; what is made meanwhile is seen when it is used again."""
        if not self._paused and _get_current_dispatch_mode() is self:
            super().__exit__(None, None, None)
            self._paused = True

    def go_on(self) -> None:
        if self._paused:
            super().__enter__()
            self._paused = False

    # ---- what the tracker sees
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return func(*args)
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(_COMPOSITE):
            return self._by_parts(func, args, kwargs)
        self._see_inputs(args)
        out = func(*args, **kwargs)
        self._see_outputs(out)
        if func is _ADD_INTO and self._phase == "backward":
            self._see_accumulation(*args[:2])
        return out

    def _by_parts(self, func: Any, args: Any, kwargs: Any) -> Any:
        """In inference mode operators made of others arrive whole; what their parts allocate is to be seen, too."""
        handled = func.has_kernel_for_dispatch_key(_AUTOCAST)  # else autocast is for its parts
        torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOCAST, handled or not self._autocast.enabled)
        super().__enter__()
        try:
            return func.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)
            torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOCAST, True)

    def __enter__(self) -> MemoryTracker:
        _RESIZES.watch(self)
        if self.module_names is not None:
            self.module_names.__enter__()
        self._autocast.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if not self._paused:
            super().__exit__(*exception)
        self._paused = False
        self._autocast.__exit__(None, None, None)
        if self.module_names is not None:
            self.module_names.__exit__()
        _RESIZES.unwatch(self)

    def _see_inputs(self, args: Any) -> None:
        """A storage that nobody named before its first use was there already: it counts as `other` from now on."""
        for value in args:
            if isinstance(value, Tensor):
                if value.untyped_storage()._cdata not in self._live:
                    self._add(value, "other", "")
            elif isinstance(value, (list, tuple)):
                self._see_inputs(value)

    def _see_outputs(self, out: Any) -> None:
        if isinstance(out, Tensor):
            known = self._live.get(out.untyped_storage()._cdata)
            if known is None:
                self._add_new(out)
            elif known.raw != out.untyped_storage().nbytes():
                self._resize(out.untyped_storage())
        elif isinstance(out, (list, tuple)):
            for value in out:
                self._see_outputs(value)

    def _see_accumulation(self, total: Tensor, addend: Any) -> None:
        """What is added to a gradient in place is a gradient too (kept gradients, several backward passes)."""
        known = self._live.get(total.untyped_storage()._cdata)
        if known is not None and known.kind == "gradients" and isinstance(addend, Tensor):
            self.hold([addend], "gradients")

    # ---- booking
    def _add_new(self, tensor: Tensor) -> None:
        kind = DEFAULT_KIND.get(self._phase, "other")
        module = "" if self.module_names is None else self.module_names.here()
        if self._phase == "backward":
            node = torch._C._current_autograd_node()
            if node is not None and tuple(tensor.shape) in leaf_shapes(node):
                kind = "gradients"
        self._add(tensor, kind, module)

    def _add(self, tensor: Tensor, kind: str, module: str) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        allocation = self._book(storage.nbytes(), kind, module, tuple(tensor.shape), tensor.dtype)
        self._live[key] = allocation
        weakref.finalize(storage, _released, weakref.ref(self), key).atexit = False

    def _book(self, size: int, kind: str, module: str, shape: tuple[int, ...], dtype: torch.dtype) -> Allocation:
        self._clock += 1
        allocation = Allocation(self.rounding(size), size, self._clock, kind, self._phase, module, shape, dtype)
        self.allocations.append(allocation)
        self.current += allocation.bytes
        self._note_peak(module)
        if len(self.allocations) > self._limit:
            self._strike_out()
        return allocation

    def _strike_out(self) -> None:
        """Long work makes millions of tensors: what has died and was at no peak so far can be at none to come."""
        events = {event for _, event, _ in self.peaks.values()} | {(self._before_backward or (0, 0))[1]}
        self.allocations = [a for a in self.allocations if a.died is None or any(a.alive_at(event) for event in events)]
        self._limit = FEW + 2 * len(self.allocations)

    def _release(self, key: int) -> None:
        allocation = self._live.pop(key, None)
        if allocation is not None:
            self._clock += 1
            allocation.died = self._clock
            self.current -= allocation.bytes

    def _resize(self, storage: torch.UntypedStorage) -> None:
        """The old block is given back after the new one is there, as the allocator does it; the kind stays."""
        before = self._live.get(storage._cdata)
        if before is None or before.raw == storage.nbytes():
            return
        after = self._book(storage.nbytes(), before.kind, before.module, before.shape, before.dtype)
        self._release(storage._cdata)
        self._live[storage._cdata] = after

    def _note_peak(self, module: str) -> None:
        if self.current > self.peaks.get(self._phase, (-1, 0, ""))[0]:
            self.peaks[self._phase] = (self.current, self._clock, module)


def _released(tracker: weakref.ref[MemoryTracker], key: int) -> None:
    alive = tracker()
    if alive is not None:
        alive._release(key)


class _Resizes:
    """`UntypedStorage.resize_` (used by FSDP) is no operator: trackers that are active are told of it here."""

    def __init__(self) -> None:
        self.trackers: list[MemoryTracker] = []

    def watch(self, tracker: MemoryTracker) -> None:
        if not self.trackers:
            trackers = self.trackers

            def resize_(storage: torch.UntypedStorage, size: int) -> Any:
                result = super(torch.UntypedStorage, storage).resize_(size)
                for one in trackers:
                    one._resize(storage)
                return result

            torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        self.trackers.append(tracker)

    def unwatch(self, tracker: MemoryTracker) -> None:
        self.trackers.remove(tracker)
        if not self.trackers:
            del torch.UntypedStorage.resize_


_RESIZES = _Resizes()

"""Rehearses a run on fake tensors: the very steps the trainer takes, with every byte counted and none allocated.

build on meta ──> make_fake ──> Rehearsal ──> rehearse                                    (what prepare needs most)
                                          ├─> forward, backward, clip, step              (twice: states count)
                                          └─> predict                                     (evaluation)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from transfer_run.hardware.steps import Steps
from transfer_run.memory.account import MemoryReport, preceded
from transfer_run.memory.allocator import cuda_block, exact, expandable_block
from transfer_run.memory.cuda import CountsAsCuda, cublas_workspace
from transfer_run.memory.fake import AnswersNo, fake_mode, make_fake
from transfer_run.memory.meters import PREPARE
from transfer_run.memory.module_names import ModuleNames
from transfer_run.memory.paper import attend_eagerly, keep_as_given
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.memory.types import in_words
from transfer_run.task import without_beside

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""What a batch is made of: name -> shape, dtype."""

_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """How the run is carried out, as far as memory feels it.

    Attributes:
        target: the machine whose memory is predicted, `cuda` or `cpu`.
        precision: Lightning's name: `32-true`, `bf16-mixed`, `16-mixed`, `bf16-true`, `16-true`.
        gradient_clip: norm; None: no clipping.
        accumulate: batches per optimizer step.
        grads_to_none: False: gradients are zeroed but kept.
        use_cache: decoder keys and values are kept until the loss is there.
        expandable_segments: PyTorch's allocator on CUDA cuts every block to measure.
        paper: the setting of the papers of 2022 (`memory/paper.py`): eager attention, keys and values and the
            output alive during backward, gradients kept, optimizers one tensor at a time, no library workspace.
    """

    target: str = "cuda"
    precision: str = "32-true"
    gradient_clip: float | None = 1.0
    accumulate: int = 1
    grads_to_none: bool = True
    use_cache: bool = False
    expandable_segments: bool = False
    paper: bool = False

    def as_paper(self) -> Setting:
        return replace(self, paper=True, grads_to_none=False, use_cache=True)

    @property
    def dtype(self) -> torch.dtype | None:
        """The half type that `precision` names."""
        return _DTYPES.get(self.precision.split("-")[0])

    @property
    def rounding(self) -> Callable[[int], int]:
        """Bytes asked for -> bytes counted."""
        if self.target != "cuda":
            return exact
        return expandable_block if self.expandable_segments else cuda_block

    @property
    def mixed(self) -> bool:
        return self.precision.endswith("mixed")


class Rehearsal:
    """One method with its optimizers on fake tensors; can be measured at any batch size.

    Args:
        method: built for real or on the meta device; it is converted in place and of no other use afterwards.
        make_optimizers: builds them over the (fake) parameters; not called when the method takes no step.
        shapes: batch size -> what a batch of that size is made of.
        trains: False rehearses the evaluation alone.
        prepares: False leaves out what is done before the first step.

    Attributes:
        left_out: what of `prepare` is in no number, a line each; known once something has been measured.
    """

    def __init__(
        self,
        method: nn.Module,
        make_optimizers: Callable[[], Mapping[str, Optimizer]],
        shapes: Callable[[int], Shapes],
        setting: Setting,
        trains: bool = True,
        prepares: bool = False,
    ) -> None:
        self.method: Any = method
        self.prepares = prepares
        self.left_out: list[str] = []
        self.shapes = shapes
        self.setting = setting
        self.mode = fake_mode()
        make_fake(method, self.mode, None if setting.mixed else setting.dtype)
        if setting.paper:
            attend_eagerly(method)
        self.module_names = ModuleNames(method)
        self.tracker = MemoryTracker(setting.rounding, self.module_names)
        self.steps = PlannedSteps(self, self._optimizers(make_optimizers)) if trains else None
        self._stepped = False
        self._reserved: set[str] = set()

    def measure(self, batch_size: int) -> MemoryReport:
        """The peak of training (from the second step on, when optimizer states exist) and of one evaluation."""
        with in_words(), ExitStack() as stack:
            modes: list[Any] = [
                self.mode,
                AnswersNo(self.setting.target == "cuda", self.module_names.here),
                self.tracker,
            ]
            if self.setting.target == "cuda":
                modes.append(CountsAsCuda())
            for mode in modes:
                stack.enter_context(mode)
            self.tracker.mark("setup")
            self.tracker.hold_model(self.method)
            self._follow_stream()
            batch = self._batch(batch_size)
            prepared = self._prepare(batch) if self.prepares else None
            if self.steps is not None:
                self.method.train()
                if not self._stepped and (self.method.own_steps or not self.setting.grads_to_none):
                    self._train_step(batch)  # kept gradients are there from the second step on, and so are states
                self.tracker.reset()
                self._train_step(batch)
            else:
                self.tracker.reset()
            if self.method.tests or prepared is None:
                batch = without_beside(batch)
                self._evaluate(batch)
            found = self.tracker.report()
            return found if prepared is None else preceded(found, prepared, PREPARE)

    def _prepare(self, batch: dict[str, Tensor]) -> MemoryReport:
        """What the method does before the first step, in single precision and without an optimizer."""
        self.tracker.mark(PREPARE)
        self.tracker.reset()
        self._reserve("forward")
        self.left_out = list(self.method.rehearse(batch))
        return self.tracker.report()

    def _follow_stream(self) -> None:
        """Blocks that stay in CPU memory are no part of a GPU's; the copies of those that run are."""
        stream = getattr(getattr(self.method, "backbone", None), "stream", None)
        if stream is not None:
            stream.on_copies = lambda copies: self.tracker.hold(copies, "parameters")
            if self.setting.target == "cuda":
                self.tracker.forget(stream.host_tensors())

    # ---- the steps
    def _train_step(self, batch: dict[str, Tensor]) -> None:
        """As the runner takes it: gradients are let go of when the step is done, not when the next one begins."""
        assert self.steps is not None
        batches = min(self.setting.accumulate, 2)  # a third batch would repeat the second
        if self.method.own_steps:
            for number in range(batches):
                self.mark_forward()
                with self._precision():
                    self.steps.carry_out(self.method, batch, last=number + 1 == batches)
            self._stepped = True
            return
        for _ in range(batches):
            self._accumulate(batch)
        if not self._stepped:
            self._first_update()
        self.steps.step()

    def _first_update(self) -> None:
        """Make the optimizer's states, and count them as if they had been there: later steps find them."""
        assert self.steps is not None
        self.steps.update_all("first update")
        self.tracker.backdate("optimizer")
        self.tracker.peaks.pop("first update")
        self._stepped = True

    def mark_forward(self) -> None:
        self.tracker.mark("forward")
        self._reserve("forward")

    def _accumulate(self, batch: dict[str, Tensor]) -> None:
        """Forward and backward of one batch."""
        kept: list[Any] = []  # alive until backward has ended
        self.mark_forward()
        with self._precision():
            if self.setting.paper:
                loss = self._paper_loss(batch, kept)
            else:
                loss = self.method.training_loss(batch, use_cache=self.setting.use_cache)
        self.backward(loss)

    def backward(self, loss: Tensor, inputs: Iterable[Tensor] | None = None) -> None:
        self.tracker.mark("backward")
        self._reserve("backward")
        edges = None if inputs is None else [get_gradient_edge(tensor) for tensor in inputs]
        torch.autograd.backward(get_gradient_edge(loss), inputs=edges)  # a tensor's own turns function modes off
        self.tracker.hold_gradients(self.method)

    def _paper_loss(self, batch: dict[str, Tensor], kept: list[Any]) -> Tensor:
        """The loss with a key/value cache of the papers' time; cache and output are put into `kept`."""
        whole: dict[str, Any] = dict(batch)
        if self.setting.use_cache and self.method.form.writes:
            whole["cache"] = keep_as_given(self.method.new_cache())
        kept.append(whole)
        hook = self.method.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            loss: Tensor = self.method.loss(whole)
        finally:
            hook.remove()
        return loss

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        self.tracker.mark("evaluation")
        self._reserve("forward")
        self.method.eval()
        with torch.inference_mode(), self._precision():
            self.method.predict(batch)

    # ---- parts
    @property
    def foreach(self) -> bool:
        """PyTorch updates all parameters at once on CUDA, with temporaries as large as they are; not in 2022."""
        return self.setting.target == "cuda" and not self.setting.paper

    def _optimizers(self, make_optimizers: Callable[[], Mapping[str, Optimizer]]) -> Mapping[str, Optimizer]:
        with self.mode:
            optimizers = make_optimizers()
        for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = self.foreach
        return optimizers

    def _batch(self, size: int) -> dict[str, Tensor]:
        half = None if self.setting.mixed else self.setting.dtype
        batch = {}
        for name, (shape, dtype) in self.shapes(size).items():
            batch[name] = torch.empty(shape, dtype=half if half is not None and dtype.is_floating_point else dtype)
        self.tracker.hold(batch.values(), "inputs")
        return batch

    @contextmanager
    def _precision(self) -> Any:
        """Autocast for mixed precision; the default dtype for true half precision (Lightning does the same)."""
        if self.setting.dtype is None:
            yield
        elif self.setting.mixed:
            with torch.autocast("cpu", dtype=self.setting.dtype):
                yield
        else:
            before = torch.get_default_dtype()
            torch.set_default_dtype(self.setting.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    def _reserve(self, thread: str) -> None:
        """cuBLAS takes a workspace in the thread of forward and one in that of backward, once."""
        if self.setting.target != "cuda" or self.setting.paper:
            return
        if thread not in self._reserved:
            self._reserved.add(thread)
            self.tracker.reserve(cublas_workspace(), f"cuBLAS workspace ({thread})")


class PlannedSteps(Steps):
    """Steps on fake tensors: the phases are marked, gradients and states are known for what they are."""

    def __init__(self, rehearsal: Rehearsal, optimizers: Mapping[str, Optimizer]) -> None:
        setting = rehearsal.setting
        super().__init__(
            optimizers,
            clip=setting.gradient_clip,
            accumulate=setting.accumulate,
            grads_to_none=setting.grads_to_none,
            use_cache=setting.use_cache,
        )
        self.rehearsal = rehearsal

    def update_all(self, phase: str) -> None:
        """Update what every optimizer moves; gradients stay."""
        for name in self.optimizers:
            self._update(name, phase)

    def _backward(self, loss: Tensor, inputs: list[Tensor] | None) -> None:
        self.rehearsal.backward(loss, inputs)

    def _update(self, name: str, phase: str = "step") -> None:
        tracker, optimizer = self.rehearsal.tracker, self.optimizers[name]
        tracker.mark(phase)
        self.clip_gradients(optimizer, foreach=self.rehearsal.foreach)
        optimizer.step()
        tracker.hold_optimizer(optimizer)
        if self.rehearsal.setting.target == "cuda" and not _fused(optimizer):  # step counters stay on the host
            tracker.forget(s["step"] for s in optimizer.state.values() if isinstance(s.get("step"), Tensor))

    def _let_go(self, name: str) -> None:
        super()._let_go(name)
        if self.rehearsal.method.own_steps:
            self.rehearsal.mark_forward()


def _fused(optimizer: Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)

"""The tracker against a naive model of storages, and what it says tensors are for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transfer_run.memory.allocator import cuda_block, exact
from transfer_run.memory.fake import fake_mode
from transfer_run.memory.module_names import ModuleNames
from transfer_run.memory.tracker import MemoryTracker

OPERATIONS = ("make", "view", "part", "in_place", "copy", "add", "detach", "free", "resize", "storage_resize", "into")


class Naive:
    """Storages as numbers with sizes, tensors as names of storages; a storage lives while a tensor names it."""

    def __init__(self, rounding: Callable[[int], int]) -> None:
        self.rounding, self.sizes, self.peak = rounding, dict[int, int](), 0
        self.tensors: list[int] = []

    @property
    def current(self) -> int:
        return sum(self.rounding(self.sizes[key]) for key in set(self.tensors))

    def make(self, size: int) -> None:
        self.sizes[len(self.sizes)] = size
        self.tensors.append(len(self.sizes) - 1)
        self.peak = max(self.peak, self.current)

    def resize(self, which: int, size: int) -> None:
        key = self.tensors[which]
        if size != self.sizes[key]:
            self.peak = max(self.peak, self.current + self.rounding(size))
            self.sizes[key] = size


def carry_out(program: list[tuple[str, int, int]], naive: Naive, tracker: MemoryTracker) -> None:
    """Run a random program on tensors and on the model, comparing after every operation."""
    tensors: list[Tensor] = []
    for operation, which, size in program:
        if operation == "make" or not tensors:
            tensors.append(torch.empty(size))
            naive.make(4 * size)
        else:
            which %= len(tensors)
            step(operation, which, size, tensors, naive)
        assert tracker.current == naive.current
        assert max(peak for peak, _, _ in tracker.peaks.values()) == naive.peak


def step(operation: str, which: int, size: int, tensors: list[Tensor], naive: Naive) -> None:
    chosen = tensors[which]
    if operation in ("view", "part", "detach"):
        made = {"view": chosen.unsqueeze, "part": lambda _: chosen.narrow(0, 0, 0), "detach": lambda _: chosen.detach()}
        tensors.append(made[operation](0))
        naive.tensors.append(naive.tensors[which])
    elif operation == "in_place":
        chosen.mul_(2)
    elif operation == "into":
        torch.neg(chosen.detach().clone(), out=chosen)
        naive.make(4 * chosen.numel())
        naive.tensors.pop()
    elif operation in ("copy", "add"):
        tensors.append(chosen.clone() if operation == "copy" else chosen + 1)
        naive.make(4 * chosen.numel())
    elif operation == "free":
        del chosen
        tensors.pop(which)
        naive.tensors.pop(which)
    elif operation == "resize" and chosen.untyped_storage().nbytes() < 4 * size:
        chosen.resize_(size)
        naive.resize(which, 4 * size)
    elif operation == "storage_resize" and chosen.untyped_storage().nbytes() < 4 * size:
        chosen.untyped_storage().resize_(4 * size)
        naive.resize(which, 4 * size)


programs = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9), st.integers(1, 700)), min_size=1, max_size=25
)


@given(program=programs, rounded=st.booleans())
@settings(deadline=None, max_examples=80)
def test_agrees_with_a_naive_model_on_real_tensors(program: list[tuple[str, int, int]], rounded: bool) -> None:
    rounding = cuda_block if rounded else exact
    with MemoryTracker(rounding) as tracker:
        carry_out(program, Naive(rounding), tracker)


@given(program=programs)
@settings(deadline=None, max_examples=40)
def test_agrees_with_a_naive_model_on_fake_tensors(program: list[tuple[str, int, int]]) -> None:
    program = [entry for entry in program if entry[0] != "storage_resize"]
    with fake_mode(), MemoryTracker(cuda_block) as tracker:
        carry_out(program, Naive(cuda_block), tracker)


def test_resizing_is_left_as_it_was_found() -> None:
    before = torch.UntypedStorage.resize_
    with MemoryTracker(), MemoryTracker():
        assert torch.UntypedStorage.resize_ is not before
    assert torch.UntypedStorage.resize_ is before


# ---- kinds
def model_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    """A frozen first layer, a trained rest, dropout between."""
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1)), nn.Linear(64, 10)
    )
    model[0].requires_grad_(False)
    return model, torch.randn(100, 32), torch.randint(10, (100,))


def size_of(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def train_steps(
    steps: int, keep_gradients: bool = False, name_gradients: bool = True
) -> tuple[nn.Module, MemoryTracker]:
    model, inputs, labels = model_and_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with MemoryTracker(module_names=ModuleNames(model)) as tracker:
        tracker.hold_model(model)
        tracker.hold([inputs, labels], "inputs")
        for _ in range(steps):
            tracker.mark("forward")
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad(set_to_none=not keep_gradients)
            tracker.mark("backward")
            loss.backward()
            if name_gradients:
                tracker.hold_gradients(model)
            tracker.mark("step")
            optimizer.step()
            tracker.hold_optimizer(optimizer)
            del loss
    return model, tracker


def test_every_kind_is_counted_for_what_it_is() -> None:
    model, tracker = train_steps(2)
    phases = tracker.report().phases
    trained = size_of([p for p in model.parameters() if p.requires_grad])
    steps = 4 * sum(p.requires_grad for p in model.parameters())
    for phase in phases.values():
        assert phase.by_kind["parameters"] == size_of(list(model.parameters()))
        assert phase.by_kind["inputs"] == 100 * 32 * 4 + 100 * 8
        assert sum(phase.by_kind.values()) == phase.bytes
    assert phases["step"].by_kind["gradients"] == trained
    assert phases["step"].by_kind["optimizer"] == 2 * trained + steps
    assert phases["forward"].by_kind["activations"] == 4 * 100 * 64 * 4  # relu, linear, dropout and its mask
    assert phases["setup"].by_kind["activations"] == 0


def test_a_gradient_is_one_from_its_making_on_also_when_backward_was_not_over() -> None:
    model, tracker = train_steps(1)
    made_in_backward = [a for a in tracker.allocations if a.phase == "backward" and a.kind == "gradients"]
    trained = size_of([p for p in model.parameters() if p.requires_grad])
    assert sum(a.bytes for a in made_in_backward) == trained
    assert {a.module for a in made_in_backward} == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_matrix_gradient_is_known_for_one_before_anybody_names_it() -> None:
    """A bias's, a sum that is reshaped, is known when backward has ended."""
    model, tracker = train_steps(1, name_gradients=False)
    made = [a for a in tracker.allocations if a.phase == "backward" and a.kind == "gradients"]
    assert sum(a.bytes for a in made) == size_of([p for p in model.parameters() if p.requires_grad and p.ndim > 1])


def test_what_is_added_to_a_kept_gradient_is_a_gradient() -> None:
    model, tracker = train_steps(2, keep_gradients=True)
    trained = size_of([p for p in model.parameters() if p.requires_grad])
    backward = tracker.report().phases["backward"].by_kind
    assert trained <= backward["gradients"] <= 2 * trained
    made = [a for a in tracker.allocations if a.phase == "backward" and a.kind == "gradients"]
    assert sum(a.bytes for a in made) == 2 * trained  # the second time into temporaries


def test_frozen_parameters_get_neither_gradient_nor_state() -> None:
    model, _, _ = model_and_batch()
    model.requires_grad_(False)
    with MemoryTracker() as tracker, torch.no_grad():
        tracker.hold_model(model)
        tracker.mark("evaluation")
        model(torch.randn(100, 32))
    by_kind = tracker.report().by_kind
    assert by_kind["gradients"] == by_kind["optimizer"] == 0
    assert by_kind["parameters"] == size_of(list(model.parameters()))


def test_modules_are_named_in_forward_and_in_backward() -> None:
    _, tracker = train_steps(1)
    places = {(a.phase, a.module) for a in tracker.allocations}
    assert {("forward", "0"), ("forward", "2.0"), ("forward", "2.1"), ("forward", "3")} <= places
    assert ("backward", "2.1") in places  # the gradient of dropout's input
    assert not torch.nn.modules.module._global_forward_hooks


def test_what_was_there_before_counts_when_it_is_first_used() -> None:
    unnamed = torch.randn(50)
    with MemoryTracker() as tracker:
        unnamed.add_(1)
        assert tracker.current == 200
        assert tracker.allocations[-1].kind == "other"


def test_releases_are_seen_between_two_episodes() -> None:
    tracker = MemoryTracker()
    with tracker:
        tensor = torch.empty(100)
    assert tracker.current == 400
    del tensor
    assert tracker.current == 0
    with tracker:
        torch.empty(10)
    assert tracker.report().peak == 400


def test_reset_forgets_the_peak_and_forget_the_tensor() -> None:
    with MemoryTracker() as tracker:
        kept, passing = torch.empty(10), torch.empty(1000)
        del passing
        tracker.reset()
        assert tracker.report().peak == 40
        tracker.forget([kept])
        tracker.reset()
        assert tracker.report().peak == 0
        kept.add_(1)
        assert tracker.current == 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointing_lowers_activations(checkpointed: bool) -> None:
    layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)) for _ in range(6)])
    inputs = torch.randn(128, 64)
    with MemoryTracker(module_names=ModuleNames(layers)) as tracker:
        tracker.hold_model(layers)
        tracker.mark("forward")
        hidden = inputs
        for layer in layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False) if checkpointed else layer(hidden)
        tracker.mark("backward")
        hidden.sum().backward()
    activations = tracker.report().by_kind["activations"]
    inner = 128 * 256 * 4
    assert (activations < 4 * inner) == checkpointed
    assert tracker.report().phases["backward"].by_kind["gradients"] > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_copies_inside_operators_made_of_others_are_seen(mode: Callable[[], torch.no_grad]) -> None:
    """Matmul of transposed heads copies both factors; inference mode hands the operator over whole."""
    left, right = torch.randn(2, 8, 3, 4).transpose(1, 2), torch.randn(2, 8, 3, 4).transpose(1, 2)
    with mode(), MemoryTracker() as tracker:
        tracker.hold([left, right], "inputs")
        result = left @ right.transpose(2, 3)
    copies, out = 2 * left.numel() * 4, result.numel() * 4
    assert tracker.report().peak == 2 * left.numel() * 4 + copies + out

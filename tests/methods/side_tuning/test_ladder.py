"""The ladder's parts by themselves, and other side networks made of them: Res-Tuning-Bypass, DTL, QST."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.methods.side_tuning.models import backbone, batch, gradients, task
from transfer_run.methods.base import Method
from transfer_run.methods.side_tuning.ladder.ladder import Identities, Ladder, LadderTuning
from transfer_run.methods.side_tuning.ladder.mixing import GateMix, LearnedGates, ScheduledGate, Sum
from transfer_run.methods.side_tuning.ladder.slim_blocks import side_blocks


# ---- mixing
def test_gate_mix_is_differentiated_right() -> None:
    side, ladder = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gate = torch.rand((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GateMix.apply, (side, ladder, gate))
    assert torch.autograd.gradcheck(lambda s, g: GateMix.apply(s, ladder.detach(), g), (side, gate))
    assert torch.equal(GateMix.apply(side, ladder, gate), gate * side + (1 - gate) * ladder)


def test_gate_mix_of_two_precisions() -> None:
    """Under mixed precision the side stream is float32 and the ladder bfloat16: gradients take each one's own."""
    side, ladder = torch.randn(4, requires_grad=True), torch.randn(4).bfloat16().requires_grad_(True)
    gate = torch.tensor(0.25, requires_grad=True)
    GateMix.apply(side, ladder, gate).sum().backward()
    assert (side.grad.dtype, ladder.grad.dtype, gate.grad.shape) == (torch.float32, torch.bfloat16, torch.Size([]))


def test_gates_keep_one_tensor_instead_of_two() -> None:
    def kept(lean: bool) -> int:
        gates, found = LearnedGates(2, lean=lean), set()
        side, ladder = (torch.randn(8, 64, requires_grad=True) for _ in range(2))
        note: Callable[[Tensor], Tensor] = lambda t: (found.add(t.untyped_storage().data_ptr()), t)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(lambda t: note(t) if t.numel() > 9 else t, lambda t: t):
            gates(1, side + 0, ladder + 0)
        return len(found)

    assert (kept(True), kept(False)) == (1, 2)


def test_schedules() -> None:
    """Linear from 0.1 to 0.9 over the epochs; 1 / (1 + epoch) within 0.1 and 0.9."""
    linear, hyperbolic = ScheduledGate("linear"), ScheduledGate("hyperbolic")
    values: dict[str, list[float]] = {"linear": [], "hyperbolic": []}
    for epoch in range(12):
        for gate in (linear, hyperbolic):
            gate.start_epoch(epoch, 12)
            values[gate.kind].append(gate.value.item())
    assert values["linear"] == pytest.approx([0.1 + 0.8 * e / 11 for e in range(12)])
    assert values["hyperbolic"] == pytest.approx(
        [0.9, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7, 1 / 8, 1 / 9, *[0.1] * 3]
    )
    side, ladder = torch.ones(3), torch.zeros(3)
    torch.testing.assert_close(linear(0, side, ladder), torch.full((3,), 0.9))
    linear.start_epoch(0, 1)  # a run of one epoch
    assert linear.value.item() == pytest.approx(0.1)


# ---- other methods from the same parts
class TakeLast(nn.Module):
    """The output of methods that work inside the backbone's stream: its own last state."""

    def forward(self, side: Tensor, last: Callable[[], Tensor]) -> Tensor:
        return last()


class TakeSide(nn.Module):
    def forward(self, side: Tensor, last: Callable[[], Tensor]) -> Tensor:
        return side


class LowRank(nn.Module):
    """h A B with rank 2; nothing at the start where B is 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(width, 2)), nn.Parameter(0.1 * torch.randn(2, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.a @ self.b


def test_a_ladder_without_blocks() -> None:
    """Res-Tuning-Bypass: b_l = g T(h_l) + (1 - g) b_{l-1}; no gradient reaches a block, each map gets one."""
    model = backbone("vit")
    width, depth = model.width("image"), model.depth("image")
    maps = {i: nn.Linear(width, width) for i in range(depth)}
    ladder = Ladder(nn.Identity(), maps, LearnedGates(depth), Identities(list(range(depth))))
    method = LadderTuning(model, task(model), {"image": ladder}, TakeSide()).eval()
    given = batch(model)
    state = model.embed(given)
    by_hand = state.hidden
    for i, after in enumerate(model.taps(state)):
        gate = ladder.mix.gate(i)
        by_hand = gate * by_hand + (1 - gate) * maps[i](after.hidden)
    torch.testing.assert_close(method(given), method.backbone.head(model.pool(by_hand, after)))
    assert set(gradients(method, given)) == {n for n, p in method.named_parameters() if p.requires_grad}


def test_a_ladder_that_feeds_back() -> None:
    """DTL: s <- s + h_{l-1} A_l B_l, and from block 1 on x <- block(x) + swish(s); gradients pass late blocks only."""
    model = backbone("vit").double()
    width, depth, late = model.width("image"), model.depth("image"), 1
    maps = {i: LowRank(width).double() for i in range(depth - 1)}  # reads the input of block i + 1

    def feedback(index: int, hidden: Tensor, side: Tensor) -> Tensor:
        return hidden + side * torch.sigmoid(100 * side) if index >= late else hidden

    first = LowRank(width).double()
    ladder = Ladder(first, maps, Sum(), Identities(list(range(depth - 1))), feedback=feedback)
    method = LadderTuning(model, task(model), {"image": ladder}, TakeLast(), reads_last=True).double().eval()
    given = {n: t.double() if t.is_floating_point() else t for n, t in batch(model).items()}
    runs: list[bool] = []
    for block in model.blocks("image"):
        block.register_forward_hook(lambda m, i, o: runs.append(o.requires_grad))
    logits = method(given)
    assert runs == [False, False, True]  # block 1's output is the first to be changed, block 2 the first to be passed
    state = model.embed(given)
    side = first(state.hidden)
    for i in range(depth):
        state = model.step(state)
        state = state.with_hidden(feedback(i, state.hidden, side))
        if i in maps:
            side = side + maps[i](state.hidden)
    expected = method.backbone.head(model.pool(model.finish(state), state))
    torch.testing.assert_close(logits, expected)
    assert set(gradients(method, given)) == {n for n, p in method.named_parameters() if p.requires_grad}


def test_a_ladder_with_low_rank_maps_and_a_convex_output() -> None:
    """QST: side blocks with low-rank ladders, output (1 - a) up(s) + a h_L through the frozen language head."""
    model = backbone("llama")
    width, depth, narrow = model.width("decoder"), model.depth("decoder"), model.width("decoder") // 2

    class Convex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.a = nn.Linear(narrow, width), nn.Parameter(torch.ones(width))

        def forward(self, side: Tensor, last: Callable[[], Tensor]) -> Tensor:
            share = torch.sigmoid(self.a)
            return (1 - share) * self.up(side) + share * last()

    def low_rank() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 2, bias=False), nn.Linear(2, narrow, bias=False))

    steps = side_blocks(model, "decoder", range(depth), 2)
    ladder = Ladder(low_rank(), {i: low_rank() for i in range(depth)}, LearnedGates(depth), steps)
    method = LadderTuning(model, task(model), {"decoder": ladder}, Convex(), reads_last=True).eval()
    given = batch(model)
    with torch.no_grad():
        method.output.a.fill_(100)
        torch.testing.assert_close(method(given), Method(model, task(model)).eval()(given))
        method.output.a.fill_(1)
    assert set(gradients(method, given)) == {n for n, p in method.named_parameters() if p.requires_grad}

"""One rank of FSDP out of a whole device's events, against PyTorch's own FSDP on a process group without peers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

from transfer_run.memory.account import MemoryReport
from transfer_run.memory.devices import one_of_many
from transfer_run.memory.module_names import ModuleNames
from transfer_run.memory.sharded import Units
from transfer_run.memory.tracker import MemoryTracker

RANKS, WIDTH, WORDS = 4, 64, 100


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(torch.relu(self.a(x)))
        return out


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def measured(model: nn.Module, rows: int) -> tuple[MemoryReport, MemoryTracker]:
    """The second training step of a model, tensor by tensor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    ids = torch.randint(0, WORDS, (rows, 8))
    with MemoryTracker(module_names=ModuleNames(model)) as tracker:
        for step in range(2):
            if step:
                tracker.reset()
            tracker.hold_model(model)
            tracker.mark("forward")
            loss = model(ids).logsumexp(-1).mean()
            tracker.mark("backward")
            loss.backward()
            tracker.hold_gradients(model)
            tracker.mark("step")
            optimizer.step()
            tracker.hold_optimizer(optimizer)
            optimizer.zero_grad()
            tracker.mark("between")
        return tracker.report(), tracker


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [1, 16, 200])
@pytest.mark.usefixtures("alone")
def test_a_rank_is_what_pytorchs_own_is(rows: int) -> None:
    model = Model()
    report, tracker = measured(model, rows)
    units = Units.of(model, model.blocks)
    ours, _ = one_of_many(report.as_dict("plan"), RANKS, "fsdp", units, tracker.allocations, ahead=False)
    wrapped = FullyShardedDataParallel(
        Model(), auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=True, device_id=torch.device("cpu")
    )
    theirs = measured(wrapped, rows)[0]
    for phase in ("forward", "backward"):
        assert ours["phases"][phase]["peak"] == pytest.approx(theirs.phases[phase].bytes, rel=0.02)
    assert ours["peak"] == sum(ours["by_kind"].values())
    sizes = [tensor["bytes"] for tensor in ours["largest"]]
    assert sizes == sorted(sizes, reverse=True)
    shards = [tensor for tensor in ours["largest"] if "one of 4 shards" in tensor["module"]]
    assert all(tensor["kind"] in ("parameters", "gradients", "optimizer", "other") for tensor in shards)


def test_on_a_gpu_the_next_block_is_gathered_in_forward_too() -> None:
    model = Model()
    report, tracker = measured(model, 4)
    units = Units.of(model, model.blocks)
    peaks = {ahead: one_of_many(report.as_dict("plan"), RANKS, "fsdp", units, tracker.allocations, ahead)[0]["phases"]
             for ahead in (True, False)}  # fmt: skip
    block = 2 * WIDTH * 4 * WIDTH * 4
    assert 0 < peaks[True]["forward"]["peak"] - peaks[False]["forward"]["peak"] <= block
    assert peaks[True]["backward"] == peaks[False]["backward"]
    assert peaks[True]["step"]["by_kind"]["optimizer"] == pytest.approx(
        report.phases["step"].by_kind["optimizer"] / RANKS, rel=0.001
    )

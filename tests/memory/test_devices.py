"""One device of several: what data-parallel and sharded training add and take away."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from transfer_run.memory.account import KINDS
from transfer_run.memory.devices import one_of_many
from transfer_run.memory.sharded import Units

BLOCKS = [nn.Linear(100, 100, bias=False), nn.Linear(100, 200, bias=False)]
MODEL = nn.Sequential(nn.Embedding(50, 100), *BLOCKS)
BLOCK, LARGER, TABLE = 40_000, 80_000, 20_000


def units() -> Units:
    MODEL.requires_grad_(True)
    BLOCKS[0].requires_grad_(False)
    return Units.of(MODEL, BLOCKS)


def one_device() -> dict[str, Any]:
    def phase(**kinds: int) -> dict[str, Any]:
        by_kind = dict.fromkeys(KINDS, 0) | {"parameters": 140_000, "optimizer": 200_000} | kinds
        return {"peak": sum(by_kind.values()), "module": "m", "by_kind": by_kind}

    phases = {
        "forward": phase(activations=500_000),
        "backward": phase(activations=480_000, gradients=60_000),
        "step": phase(gradients=100_000, other=100_000),
    }
    top = phases["forward"]
    return {"unit": "bytes", "source": "plan", "peak": top["peak"], "peak_phase": "forward", "peak_module": "m",
            "by_kind": top["by_kind"], "phases": phases, "largest": []}  # fmt: skip


def test_units_are_blocks_and_what_lies_outside() -> None:
    found = units()
    assert found == Units(blocks=(BLOCK, LARGER), rest=TABLE, trained=LARGER + TABLE, names=("1", "2"))


def test_data_parallel_holds_gradients_a_second_time() -> None:
    before, (after, assumptions) = one_device(), one_of_many(one_device(), 4, "ddp", units())
    for name, phase in after["phases"].items():
        assert phase["peak"] - before["phases"][name]["peak"] == LARGER + TABLE
        assert sum(phase["by_kind"].values()) == phase["peak"]
    assert after["peak"] == max(phase["peak"] for phase in after["phases"].values())
    assert any("bucket" in line for line in assumptions)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_single_device_is_left_as_it_was(strategy: str) -> None:
    memory = one_device()
    one_of_many(memory, 2, strategy, units())
    assert memory == one_device()

"""From the plan of one device to that of one of several: what data-parallel and sharded training add and take away.

These are sums, not rehearsals. Communication buffers of NCCL lie outside PyTorch's allocator and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Units:
    """Sizes in bytes of the parts that sharded training gathers one by one.

    Attributes:
        blocks: parameters of each block.
        trained_blocks: trained parameters of each block.
        rest: parameters outside the blocks (embeddings, head, a method's own).
        trained: all trained parameters.
    """

    blocks: tuple[int, ...]
    trained_blocks: tuple[int, ...]
    rest: int
    trained: int

    @classmethod
    def of(cls, model: nn.Module, blocks: Iterable[nn.Module]) -> Units:
        """Of a model and the blocks in it."""
        listed = [list(block.parameters()) for block in blocks]
        inside = {id(p) for block in listed for p in block}
        return cls(
            tuple(_size(block) for block in listed),
            tuple(_size(p for p in block if p.requires_grad) for block in listed),
            _size(p for p in model.parameters() if id(p) not in inside),
            _size(p for p in model.parameters() if p.requires_grad),
        )


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def one_of_many(memory: dict[str, Any], devices: int, strategy: str, units: Units) -> tuple[dict[str, Any], list[str]]:
    """The memory of one of `devices` devices, and the assumptions behind it.

    Args:
        memory: the plan of one device at its share of the batch (`MemoryReport.as_dict`).
        strategy: `ddp` or `fsdp`.
    """
    change, assumptions = (_ddp, _ddp_assumptions()) if strategy == "ddp" else (_fsdp, _fsdp_assumptions(devices))
    phases = {}
    for name, phase in memory["phases"].items():
        kinds = change(name, dict(phase["by_kind"]), devices, units)
        phases[name] = {**phase, "by_kind": kinds, "peak": sum(kinds.values())}
    top = max(phases, key=lambda name: phases[name]["peak"])
    changed = {
        **memory,
        "peak": phases[top]["peak"],
        "peak_phase": top,
        "peak_module": phases[top]["module"],
        "by_kind": phases[top]["by_kind"],
        "phases": phases,
    }
    return changed, assumptions


def _ddp(phase: str, kinds: dict[str, int], devices: int, units: Units) -> dict[str, int]:
    """Gradients are copied into flat buckets that live as long as the training does."""
    kinds["gradients"] += units.trained
    return kinds


def _fsdp(phase: str, kinds: dict[str, int], devices: int, units: Units) -> dict[str, int]:
    """Everything that stays is cut into shards; blocks are gathered while they work, the next one in advance."""
    blocks, trained = sorted(units.blocks, reverse=True), max(units.trained_blocks, default=0)
    for kind in ("parameters", "gradients", "optimizer"):
        kinds[kind] = -(-kinds[kind] // devices)
    if phase == "step":
        kinds["other"] = -(-kinds["other"] // devices)
    elif phase != "setup":
        kinds["parameters"] += units.rest + sum(blocks[:2])
    if phase == "backward":
        kinds["gradients"] += trained
    return kinds


def _ddp_assumptions() -> list[str]:
    return ["ddp: every device holds the whole model, and its gradients a second time in the buckets of the reducer"]


def _fsdp_assumptions(devices: int) -> list[str]:
    return [
        f"fsdp: parameters, gradients and optimizer states are cut into {devices} shards, each block a unit of its own",
        "fsdp: two blocks (the one at work and the next one) and what lies outside the blocks are gathered at a time",
    ]

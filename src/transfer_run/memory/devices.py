"""From the plan of one device to that of one of several: what data-parallel and sharded training add and take away.

Communication buffers of NCCL lie outside PyTorch's allocator and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transfer_run.memory.account import Allocation
from transfer_run.memory.sharded import Rank, Units


def one_of_many(
    memory: dict[str, Any],
    devices: int,
    strategy: str,
    units: Units,
    allocations: Iterable[Allocation] = (),
    ahead: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """The memory of one of `devices` devices, and the assumptions behind it.

    Args:
        memory: the plan of one device at its share of the batch (`MemoryReport.as_dict`).
        strategy: `ddp` or `fsdp`.
        allocations: what the plan was made of; `ahead`: see `Rank`. Both for `fsdp`.
    """
    if strategy == "ddp":
        phases = {name: _phase(_ddp(dict(p["by_kind"]), units), p["module"]) for name, p in memory["phases"].items()}
        found, assumptions = _with_phases(memory, phases), _ddp_assumptions()
    else:
        rank = Rank(allocations, devices, units, ahead=ahead)
        phases = {name: _phase(*rank.peaks[name][1:3]) if name in rank.peaks else phase
                  for name, phase in memory["phases"].items()}  # fmt: skip
        found, assumptions = _with_phases(memory, phases), _fsdp_assumptions(devices, ahead)
        if found["peak_phase"] in rank.peaks:
            found["largest"] = rank.largest(found["peak_phase"])
    return found, assumptions


def _phase(kinds: dict[str, int], module: str) -> dict[str, Any]:
    return {"peak": sum(kinds.values()), "module": module, "by_kind": kinds}


def _with_phases(memory: dict[str, Any], phases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    top = max(phases, key=lambda name: phases[name]["peak"])
    return {
        **memory,
        "peak": phases[top]["peak"],
        "peak_phase": top,
        "peak_module": phases[top]["module"],
        "by_kind": phases[top]["by_kind"],
        "phases": phases,
    }


def _ddp(kinds: dict[str, int], units: Units) -> dict[str, int]:
    """Gradients are copied into flat buckets that live as long as the training does."""
    kinds["gradients"] += units.trained
    return kinds


def _ddp_assumptions() -> list[str]:
    return ["ddp: every device holds the whole model, and its gradients a second time in the buckets of the reducer"]


def _fsdp_assumptions(devices: int, ahead: bool) -> list[str]:
    at_once = "two blocks (the one at work and the next one)" if ahead else "one block, in backward two,"
    return [
        f"fsdp: parameters, gradients and optimizer states are cut into {devices} shards, each block a unit of its own",
        f"fsdp: {at_once} and what lies outside the blocks are gathered at a time; a unit's gradients are whole until "
        "its backward ends",
    ]

"""The books: what was allocated when, and what of it was alive at a peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

KINDS = ("parameters", "gradients", "optimizer", "activations", "inputs", "other")


SETUP = "setup"
"""The phase of what is there before the first batch."""


@dataclass(slots=True)
class Allocation:
    """One storage's life.

    Attributes:
        bytes: as the allocator counts; `raw`: as asked for.
        born, died: event numbers; `died` is None while it lives.
        kind: one of `KINDS`; may be set after the fact.
        phase: the phase it was made in.
        module: dotted name of the module (or of the parameter) it belongs to.
        shape, dtype: of the first tensor seen on it.
    """

    bytes: int
    raw: int
    born: int
    kind: str
    phase: str
    module: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    died: int | None = None

    def alive_at(self, event: int) -> bool:
        return self.born <= event and (self.died is None or self.died > event)

    def as_dict(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {
            "bytes": self.bytes,
            "shape": list(self.shape),
            "dtype": dtype,
            "kind": self.kind,
            "module": self.module,
        }


@dataclass
class PhasePeak:
    """The most that was alive at once during one phase, by kind."""

    bytes: int
    module: str
    by_kind: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {"peak": self.bytes, "module": self.module, "by_kind": dict(self.by_kind)}


@dataclass
class MemoryReport:
    """What the memory was at its peak.

    Attributes:
        peak: bytes; `phase` and `module`: where it was reached.
        by_kind: bytes alive at the peak by kind; they add up to `peak`.
        phases: each phase's own peak.
        largest: allocations alive at the peak, largest first.
        kept: bytes of activations alive when backward begins, what forward keeps for it; None where it is not known.
    """

    peak: int
    phase: str
    module: str
    by_kind: dict[str, int]
    phases: dict[str, PhasePeak]
    largest: list[Allocation] = field(default_factory=list)
    kept: int | None = None

    def as_dict(self, source: str) -> dict[str, Any]:
        """The `memory` node of `result.json` (all in bytes), with the detail that the report shows."""
        return {
            "unit": "bytes",
            "source": source,
            "peak": self.peak,
            "peak_phase": self.phase,
            "by_kind": dict(self.by_kind),
            "predicted_peak": None,
            "peak_module": self.module,
            "kept": self.kept,
            "phases": {name: phase.as_dict() for name, phase in self.phases.items()},
            "largest": [allocation.as_dict() for allocation in self.largest],
        }


def preceded(found: MemoryReport, earlier: MemoryReport, phase: str) -> MemoryReport:
    """The report with one phase of an earlier one before it, in which there were no gradients or optimizer states."""
    before = earlier.phases[phase]
    kinds = {**before.by_kind, "gradients": 0, "optimizer": 0}
    before = PhasePeak(sum(kinds.values()), before.module, kinds)
    phases = {**found.phases, phase: before}
    if found.phases and before.bytes <= found.peak:
        return replace(found, phases=phases)
    return MemoryReport(before.bytes, phase, before.module, kinds, phases, earlier.largest, found.kept)


def joined(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two `memory` nodes of one run, of the process that was stopped and of the one that went on: the peak of each
    phase, and of the whole, where it was reached first; a run is set up once."""
    if not earlier or not later:
        return dict(earlier or later)
    phases = dict(earlier["phases"])
    for name, phase in later["phases"].items():
        if name not in phases or (name != SETUP and phase["peak"] > phases[name]["peak"]):
            phases[name] = phase
    kept = [node["kept"] for node in (earlier, later) if node["kept"] is not None]
    highest = later if later["peak"] > earlier["peak"] else earlier
    return {**highest, "phases": phases, "kept": max(kept, default=None)}


def by_kind(alive: Iterable[Allocation]) -> dict[str, int]:
    """Bytes of each of `KINDS`."""
    sums = dict.fromkeys(KINDS, 0)
    for allocation in alive:
        sums[allocation.kind] += allocation.bytes
    return sums


def report(allocations: list[Allocation], peaks: dict[str, tuple[int, int, str]], largest: int = 12) -> MemoryReport:
    """Rebuild the live sets at the peaks.

    Args:
        peaks: phase -> bytes, event number, module.
        largest: how many of the largest allocations to keep.
    """
    if not peaks:
        return MemoryReport(0, SETUP, "", dict.fromkeys(KINDS, 0), {})
    phases = {
        name: PhasePeak(size, module, by_kind(a for a in allocations if a.alive_at(event)))
        for name, (size, event, module) in peaks.items()
    }
    phase = max(peaks, key=lambda name: peaks[name][0])
    _, event, module = peaks[phase]
    alive = sorted((a for a in allocations if a.alive_at(event)), key=lambda a: -a.bytes)
    return MemoryReport(peaks[phase][0], phase, module, phases[phase].by_kind, phases, alive[:largest])

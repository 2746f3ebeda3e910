"""One rank of fully sharded training (PyTorch's FSDP, as Lightning wraps it), from the events of one whole device.

    single device's allocations ──> parameters, gradients, states / ranks ──> + what is gathered at each event ──> peaks

While a block works its parameters are whole, and those of the next one under way; what lies outside the blocks is whole
from the first forward to the end of backward. Gradients of a unit are whole until its backward ends, where they are
copied once into a flat tensor that is reduced (`torch/distributed/fsdp`: `_unshard`, `_reduce_grad`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from transfer_run.memory.account import KINDS, Allocation

SHARDED = ("parameters", "gradients", "optimizer")
WORKING = ("forward", "backward", "evaluation")
REST = -1
"""The number of the unit of all that lies outside the blocks."""


@dataclass(frozen=True)
class Units:
    """Sizes in bytes of the parts that sharded training gathers one by one.

    Attributes:
        blocks: parameters of each block.
        rest: parameters outside the blocks (embeddings, head, a method's own).
        trained: all trained parameters.
        names: dotted names of the blocks in the model.
    """

    blocks: tuple[int, ...]
    rest: int
    trained: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, blocks: Iterable[nn.Module]) -> Units:
        """Of a model and the blocks in it."""
        blocks = list(blocks)
        listed, named = [list(block.parameters()) for block in blocks], {id(m): n for n, m in model.named_modules()}
        inside = {id(p) for block in listed for p in block}
        return cls(
            tuple(_size(block) for block in listed),
            _size(p for p in model.parameters() if id(p) not in inside),
            _size(p for p in model.parameters() if p.requires_grad),
            tuple(named[id(block)] for block in blocks if id(block) in named),
        )


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


class Rank:
    """Carries the events out once more, as one rank would see them.

    Args:
        devices: ranks.
        ahead: is the next block gathered while one runs forward? (on a GPU; in backward always)

    Attributes:
        peaks: phase -> (bytes, by kind, module, event).
    """

    def __init__(self, allocations: Iterable[Allocation], devices: int, units: Units, *, ahead: bool) -> None:
        self.allocations, self.devices, self.units, self.ahead = list(allocations), devices, units, ahead
        self.peaks: dict[str, tuple[int, dict[str, int], str, int]] = {}
        self._kinds = dict.fromkeys(KINDS, 0)
        self._whole: dict[int, list[Allocation]] = {}  # gradients not reduced yet, by unit
        self._at_work = REST
        self._began = min((a.born for a in self.allocations if a.died is not None), default=0)  # the step rehearsed
        self._run()

    def largest(self, phase: str, count: int = 12) -> list[dict[str, Any]]:
        """Allocations alive at a phase's peak, largest first, as `MemoryReport` lists them."""
        event = self.peaks[phase][3]
        alive = [(self._size(a), a) for a in self.allocations if a.alive_at(event)]
        alive.sort(key=lambda each: -each[0])
        found = []
        for size, a in alive[:count]:
            part = f" (one of {self.devices} shards)" if size < a.bytes else ""
            found.append({**a.as_dict(), "bytes": size, "module": a.module + part})
        return found

    # ---- the events
    def _run(self) -> None:
        events: list[tuple[int, int, Allocation]] = []
        for a in self.allocations:
            events.append((a.born, 1, a))
            if a.died is not None:
                events.append((a.died, 0, a))
        ends = self._ends()
        for event, is_birth, a in sorted(events, key=lambda each: each[:2]):
            if is_birth:
                self._born(a, event)
            else:
                self._kinds[a.kind] -= self._counted(a)
                for whole in self._whole.values():
                    whole[:] = [gradient for gradient in whole if gradient is not a]
            for unit in ends.pop(event, ()) if is_birth else ():
                self._reduce(unit, event)

    def _born(self, a: Allocation, event: int) -> None:
        unit = self._unit(a.module)
        if a.phase == "backward" and a.kind == "gradients" and event >= self._began:
            self._whole.setdefault(unit, []).append(a)
        self._kinds[a.kind] += self._counted(a)
        if unit != REST:
            self._at_work = unit
        self._note(a.phase, a.module, event)

    def _reduce(self, unit: int, event: int) -> None:
        """A unit's backward has ended: its gradients are copied into a flat tensor, and a shard of that stays."""
        gradients = self._whole.pop(unit, [])
        flat = sum(a.bytes for a in gradients)
        self._kinds["gradients"] += flat
        self._note("backward", gradients[0].module if gradients else "", event)
        self._kinds["gradients"] -= flat + sum(a.bytes - self._size(a) for a in gradients)

    def _ends(self) -> dict[int, list[int]]:
        """Event -> the units whose last allocation in backward it is; the rest ends with the whole."""
        last: dict[int, int] = {}
        for a in self.allocations:
            if a.phase == "backward":
                unit = self._unit(a.module)
                last[unit] = max(last.get(unit, 0), a.born)
        if last:
            last[REST] = max(last.values())
        ends: dict[int, list[int]] = {}
        for unit, event in last.items():
            ends.setdefault(event, []).append(unit)
        return ends

    # ---- sizes
    def _size(self, a: Allocation) -> int:
        """What a rank keeps of it."""
        cut = a.kind in SHARDED or (a.kind == "other" and a.phase in ("step", "first update"))
        return -(-a.bytes // self.devices) if cut else a.bytes

    def _counted(self, a: Allocation) -> int:
        whole = any(a is gradient for gradient in self._whole.get(self._unit(a.module), ()))
        return a.bytes if whole else self._size(a)

    def _unit(self, module: str) -> int:
        for number, name in enumerate(self.units.names):
            if module == name or module.startswith(f"{name}."):
                return number
        return REST

    def _gathered(self, phase: str) -> int:
        if phase not in WORKING:
            return 0
        blocks, now = self.units.blocks, self._at_work
        following = now - 1 if phase == "backward" and now != REST else now + 1
        total = self.units.rest + (blocks[now] if now != REST else 0)
        if (self.ahead or phase == "backward") and 0 <= following < len(blocks):
            total += blocks[following]
        return total

    def _note(self, phase: str, module: str, event: int) -> None:
        kinds = {**self._kinds, "parameters": self._kinds["parameters"] + self._gathered(phase)}
        size = sum(kinds.values())
        if size > self.peaks.get(phase, (-1,))[0]:
            self.peaks[phase] = (size, kinds, module, event)

"""A memory plan or measurement in words: what makes up the peak, and why a plan missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from transfer_run.memory.account import KINDS
from transfer_run.memory.meters import PREPARE

GIB, MIB, PAPER_GB = 2**30, 2**20, 1000 * 2**20
"""The papers' "GB" is `max_memory_allocated / 2**20 / 1000`."""
PHASES = (PREPARE, "forward", "backward", "step", "evaluation")


def amount(size: float, paper: bool = False) -> str:
    """Bytes for people: GiB, below a tenth of one MiB; `paper`: the papers' GB of 1000 MiB."""
    if paper and size >= PAPER_GB / 10:
        return f"{size / PAPER_GB:.2f} GB"
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def memory_report(memory: Mapping[str, Any], title: str = "memory plan", paper: bool = False) -> Group:
    """Tables of the phases and of the largest tensors, then the reasons.

    Args:
        memory: as in `result.json` (`MemoryReport.as_dict`).
        paper: amounts in the papers' GB of 1000 MiB.
    """
    return Group(title, _phases(memory, paper), _largest(memory, paper), *reasons(memory, paper))


def _unit(memory: Mapping[str, Any], paper: bool) -> tuple[str, int]:
    """One unit for a whole table, by its largest number."""
    if paper:
        return "GB of 1000 MiB", PAPER_GB
    return ("GiB", GIB) if memory["peak"] >= GIB / 2 else ("MiB", MIB)


def _phases(memory: Mapping[str, Any], paper: bool) -> Table:
    unit, size = _unit(memory, paper)
    title = f"peak of each phase, in {unit}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for kind in KINDS:
        table.add_column(kind, justify="right", no_wrap=True)
    table.add_column("peak", justify="right", style="bold", no_wrap=True)
    shown = [name for name in memory["phases"] if name not in ("setup", "between")]
    for name in sorted(shown, key=lambda name: PHASES.index(name) if name in PHASES else len(PHASES)):
        phase = memory["phases"][name]
        cells = [f"{phase['by_kind'][kind] / size:.2f}" if phase["by_kind"][kind] else "-" for kind in KINDS]
        marked = f"{name} *" if name == memory["peak_phase"] else name
        table.add_row(marked, *cells, f"{phase['peak'] / size:.2f}")
    return table


def _largest(memory: Mapping[str, Any], paper: bool) -> Table:
    """The largest tensors alive at the peak, those of one shape and kind together."""
    unit, size = _unit(memory, paper)
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for tensor in memory["largest"]:
        shape = "x".join(str(length) for length in tensor["shape"])
        groups.setdefault((shape, tensor["dtype"], tensor["kind"]), []).append(tensor)
    title = f"largest tensors alive at the peak, in {unit}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("tensors", "each", "shape", "type", "kind", "first made in"):
        table.add_column(column, justify="right" if column in ("tensors", "each") else "left")
    for key, tensors in sorted(groups.items(), key=lambda item: -sum(t["bytes"] for t in item[1])):
        module = tensors[0]["module"].removeprefix("backbone.").removeprefix("model.") or "outside modules"
        table.add_row(str(len(tensors)), f"{tensors[0]['bytes'] / size:.3f}", *key, module)
    return table


def reasons(memory: Mapping[str, Any], paper: bool = False) -> list[str]:
    """What the peak is and what it is made up of; one sentence a line."""
    peak, kinds = max(1, memory["peak"]), memory["by_kind"]
    where = f" ({memory['peak_module']})" if memory.get("peak_module") else ""
    ordered = sorted((kind for kind in KINDS if kinds[kind] > 0), key=lambda kind: -kinds[kind])
    shares = [f"{kind} {_share(kinds[kind], peak)}" for kind in ordered]
    lines = [
        f"The peak of {amount(peak, paper)} is reached in {memory['peak_phase']}{where}.",
        f"It is made up of {', '.join(shares)}.",
    ]
    if memory["peak_phase"] == "step" and kinds["other"] > 0.05 * peak:
        lines.append("Other is what the optimizer makes for its update, of all parameters at once.")
    return lines


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if part >= 0.005 * whole else "under 1 %"


def explain_difference(
    predicted: Mapping[str, Any],
    measured: Mapping[str, Any],
    planned: Mapping[str, tuple[int, ...]],
    seen: Mapping[str, Mapping[str, tuple[int, ...]]],
    left_out: Sequence[str] = (),
) -> str:
    """Prediction beside measurement, and why they differ where it is by more than 2 %.

    Args:
        predicted, measured: `memory` nodes as in `result.json`.
        planned: the planned batch's shapes by name.
        seen: the largest batch followed, by split.
        left_out: what the plan has in no number.
    """
    if not measured:
        return f"predicted peak {amount(predicted['peak'])}; nothing was measured"
    alone = measured.get("phases", {}).keys() - predicted.get("phases", {}).keys()
    if measured["peak_phase"] == PREPARE and PREPARE in alone:
        first = f"peak memory: measured {amount(measured['peak'])} in {PREPARE}, which the plan leaves out"
        rest = _without(measured, PREPARE)
        return f"{first}; " + explain_difference(predicted, rest, planned, seen, left_out) if rest else first
    if predicted["peak_phase"] == PREPARE and PREPARE not in measured.get("phases", {PREPARE: None}):
        predicted = _without(predicted, PREPARE)  # gone on from a checkpoint: another process has prepared
    off = predicted["peak"] / max(1, measured["peak"]) - 1
    text = (
        f"peak memory: predicted {amount(predicted['peak'])} in {predicted['peak_phase']}, measured "
        f"{amount(measured['peak'])} in {measured['peak_phase']} ({measured['source']}), "
        f"{round(100 * off, 1) + 0.0:+.1f} %"
    )
    if abs(off) <= 0.02:
        return text
    causes = _causes(predicted, measured, _shape_causes(planned, seen))
    causes += left_out if measured["peak_phase"] == PREPARE else ()
    return f"{text}: {'; '.join(causes)}"


def _causes(predicted: Mapping[str, Any], measured: Mapping[str, Any], causes: list[str]) -> list[str]:
    """Why the two peaks differ, after what is known already."""
    if predicted["peak_phase"] != measured["peak_phase"]:
        causes.append(f"the peak lies in {measured['peak_phase']}, not in {predicted['peak_phase']}")
    if measured["source"] == "cuda":
        causes.append("the allocator's counters include libraries' workspaces, which a plan does not know")
    kind = max(KINDS, key=lambda k: abs(predicted["by_kind"][k] - measured["by_kind"][k]))
    causes.append(
        f"most of the difference is in {kind}: predicted {amount(predicted['by_kind'][kind])}, "
        f"measured {amount(measured['by_kind'][kind])}"
    )
    return causes


def _without(memory: Mapping[str, Any], phase: str) -> dict[str, Any]:
    """The same node without one phase; empty where that was the only one."""
    left = {name: found for name, found in memory["phases"].items() if name not in (phase, "setup", "between")}
    if not left:
        return {}
    top = max(left, key=lambda name: left[name]["peak"])
    return {**memory, "peak": left[top]["peak"], "peak_phase": top, "by_kind": left[top]["by_kind"], "phases": left}


def _shape_causes(
    planned: Mapping[str, tuple[int, ...]], seen: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> list[str]:
    causes = []
    for split, shapes in seen.items():
        other = {n: s for n, s in shapes.items() if n in planned and planned[n] != s}
        if other:
            words = ", ".join(f"{name} {planned[name]} -> {shape}" for name, shape in other.items())
            causes.append(f"the largest {split} batch has other shapes than the plan's ({words})")
    return causes

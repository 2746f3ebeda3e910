"""The last thing a run prints: what it reached, what it trained, what it took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from transfer_run.run_folder import CONFUSION, read_result

GIB = 2**30
MATRIX = "/confusion/"
"""In the names of scores that are cells of a matrix."""


def size(bytes_: float) -> str:
    """Bytes for people: GiB from a tenth of one on, else MiB."""
    return f"{bytes_ / GIB:.2f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.1f} MiB"


def _off(memory: dict[str, Any]) -> str:
    """How far the prediction is off, or what it leaves out where that made the peak."""
    if memory["peak_phase"] in memory.get("not_planned", ()):
        return f"without {memory['peak_phase']}, which the plan leaves out"
    return f"{round(100 * (memory['predicted_peak'] / max(1, memory['peak']) - 1), 1) + 0.0:+.1f} %"


def show_result(folder: Path) -> None:
    """Print the finished run of `folder` as a table."""
    result = read_result(folder)
    assert result is not None, f"{folder} has no result"
    table = Table(title=f"{result['method']} on {result['backbone']}, {result['dataset']}", show_header=False)
    for name, value in result["metrics"].items():
        if MATRIX in name:
            continue  # the picture shows it
        table.add_row(name, f"{value:.4f}")
    counts = result["parameters"]
    table.add_row(
        "trainable parameters", f"{counts['trainable']:,} of {counts['total']:,} ({counts['trainable_pct']:.2f} %)"
    )
    memory = result["memory"]
    if memory:
        table.add_row(f"peak memory ({memory['source']})", f"{size(memory['peak'])} in {memory['peak_phase']}")
        kinds = sorted(memory["by_kind"].items(), key=lambda item: -item[1])
        table.add_row("  of it", ", ".join(f"{kind} {size(value)}" for kind, value in kinds if value))
        if memory.get("predicted_peak") and memory["source"] != "plan":
            table.add_row("predicted peak", f"{size(memory['predicted_peak'])} ({_off(memory)})")
    time = result["time"]
    if time["steps"]:
        table.add_row("training", f"{time['fit_seconds']:.1f} s, {time['samples_per_second']:.0f} samples/s")
    if any(MATRIX in name for name in result["metrics"]):
        table.add_row("classes taken for which", CONFUSION)
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    console.print(table)
    console.print(f"folder: {folder}", markup=False, highlight=False, soft_wrap=True)  # whole: to be copied
    for line in result.get("extra", {}).get("table", ()):  # a method's own result, as lines (a ranking, a matrix)
        console.print(line, markup=False, highlight=False, soft_wrap=True)

"""The report says what makes up the peak, what would lower it and what would not, and why a plan missed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from transfer_run.memory.account import KINDS
from transfer_run.memory.report import amount, explain_difference, memory_report, reasons

GIB = 2**30


def memory(phase: str = "backward", **gib: float) -> dict[str, Any]:
    kinds = dict.fromkeys(KINDS, 0) | {kind: int(size * GIB) for kind, size in gib.items()}
    peak = sum(kinds.values())
    tensor = {
        "bytes": GIB,
        "shape": [8, 1024],
        "dtype": "float32",
        "kind": "activations",
        "module": "backbone.model.h.3",
    }
    return {
        "unit": "bytes", "source": "plan", "peak": peak, "peak_phase": phase, "peak_module": "h.3", "by_kind": kinds,
        "phases": {phase: {"peak": peak, "module": "h.3", "by_kind": kinds}}, "largest": [tensor, tensor],
    }  # fmt: skip


def test_amounts() -> None:
    assert amount(5 * GIB) == "5.00 GiB"
    assert amount(3 * 2**20) == "3.0 MiB"
    assert amount(1000 * 2**20, paper=True) == "1.00 GB"


def test_the_peak_and_its_kinds_in_words() -> None:
    kinds = {"activations": 12.0, "parameters": 1.0, "gradients": 1.0, "optimizer": 2.0}
    assert reasons(memory(**kinds)) == [
        "The peak of 16.00 GiB is reached in backward (h.3).",
        "It is made up of activations 75 %, optimizer 12 %, parameters 6 %, gradients 6 %.",
    ]


def test_what_an_optimizer_makes_for_its_update_is_explained() -> None:
    kinds = {"parameters": 8.0, "other": 2.0}
    assert reasons(memory("step", **kinds))[2].startswith("Other is what the optimizer makes for its update")
    assert len(reasons(memory("forward", **kinds))) == 2


def test_the_report_is_printed_with_its_tables() -> None:
    console = Console(width=120)
    with console.capture() as printed:
        console.print(memory_report(memory(activations=2.0, parameters=1.0), "the title"))
    text = printed.get()
    assert "the title" in text
    assert "backward *" in text
    assert "in GiB" in text
    assert "8x1024" in text
    assert "h.3" in text


def test_a_close_prediction_needs_no_reason() -> None:
    same = {"ids": (4, 8)}
    text = explain_difference(memory(activations=1.0), memory(activations=1.01), same, {"train": same})
    assert "-1.0 %" in text
    assert "difference" not in text


def test_a_miss_is_explained_by_shapes_phase_and_kind() -> None:
    predicted, measured = memory(activations=2.0, parameters=1.0), memory("evaluation", activations=1.0, parameters=1.0)
    text = explain_difference(predicted, measured, {"ids": (4, 8)}, {"train": {"ids": (4, 5)}, "test": {"ids": (4, 8)}})
    assert "+50.0 %" in text
    assert "the largest train batch has other shapes than the plan's (ids (4, 8) -> (4, 5))" in text
    assert "test batch" not in text
    assert "the peak lies in evaluation, not in backward" in text
    assert "most of the difference is in activations: predicted 2.00 GiB, measured 1.00 GiB" in text


def test_nothing_measured_is_said() -> None:
    assert "nothing was measured" in explain_difference(memory(activations=1.0), {}, {}, {})


@pytest.mark.parametrize("source", ["cuda", "tracker"])
def test_libraries_workspaces_explain_a_gpus_miss_only(source: str) -> None:
    measured = {**memory(activations=2.0), "source": source}
    assert ("workspaces" in explain_difference(memory(activations=1.0), measured, {}, {})) == (source == "cuda")


def test_a_plan_fits_eighty_columns() -> None:
    from rich.console import Console

    from transfer_run.experiment.config.compose import compose
    from transfer_run.experiment.planning.plan import plan_run

    words = ["method=hst", "backbone=vit_base_patch16_224", "dataset=vtab/cifar100", "dataset.batch_size=64"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(plan_run(compose(words)).report)
    text = console.export_text()
    assert "…" not in text.split("largest tensors")[0]

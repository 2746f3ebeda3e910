"""The report says what makes up the peak, what would lower it and what would not, and why a plan missed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from transfer_run.memory.account import KINDS
from transfer_run.memory.report import Facts, amount, explain_difference, memory_report, reasons

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


def lines(facts: Facts, sign: str, **kwargs: Any) -> str:
    return "\n".join(line for line in reasons(memory(**kwargs), facts) if line.startswith(sign))


FULL = Facts(batch_size=32, trainable_pct=100.0)
LORA = Facts(batch_size=32, trainable_pct=1.0)
SIDE = Facts(batch_size=32, trainable_pct=2.0, through_backbone=False)


def test_amounts() -> None:
    assert amount(5 * GIB) == "5.00 GiB"
    assert amount(3 * 2**20) == "3.0 MiB"
    assert amount(1000 * 2**20, paper=True) == "1.00 GB"


def test_activations_of_full_tuning() -> None:
    kinds = {"activations": 12.0, "parameters": 1.0, "gradients": 1.0, "optimizer": 2.0}
    helps, does_not = lines(FULL, "+", **kinds), lines(FULL, "-", **kinds)
    assert "half the batch would save about 6.00 GiB" in helps
    assert "side-tuning" in helps
    assert "up to 3.00 GiB" in helps
    assert "adafactor would save nearly 2.00 GiB" in helps
    assert "activations are 75 % of the peak; method=lora" in does_not
    assert reasons(memory(**kinds), FULL)[1] == (
        "It is made up of activations 75 %, optimizer 12 %, parameters 6 %, gradients 6 %."
    )


def test_few_trained_weights_do_not_lower_activations() -> None:
    kinds = {"activations": 10.0, "parameters": 1.0, "gradients": 0.02, "optimizer": 0.04}
    assert "backward still visits every block" in lines(LORA, "-", **kinds)
    assert "training still fewer weights would not help" in lines(LORA, "-", **kinds)
    assert "optimizer states" not in lines(LORA, "+", **kinds)


def test_side_tuning_is_not_told_to_side_tune_or_checkpoint() -> None:
    kinds = {"activations": 3.0, "parameters": 2.0}
    assert "side-tuning" not in lines(SIDE, "+", **kinds)
    assert "checkpointing=true" not in lines(SIDE, "+", **kinds)
    assert "its blocks keep nothing for backward" in lines(SIDE, "-", **kinds)


def test_only_methods_that_the_backbone_has_are_named() -> None:
    kinds = {"activations": 12.0, "parameters": 1.0, "gradients": 1.0, "optimizer": 2.0}
    cnn = Facts(batch_size=32, trainable_pct=100.0, side=(), lean=("bitfit", "tint"))
    assert "side-tuning" not in lines(cnn, "+", **kinds)
    assert "training few weights (method=bitfit, tint) would save" in lines(cnn, "+", **kinds)
    assert "lora" not in lines(cnn, "-", **kinds)


def test_a_small_batch_of_a_large_model() -> None:
    kinds = {"activations": 0.5, "parameters": 10.0, "gradients": 10.0, "optimizer": 20.0}
    assert "half the batch" not in lines(FULL, "+", **kinds)
    assert "a smaller batch would hardly help: activations are 1 %" in lines(FULL, "-", **kinds)


def test_an_evaluation_is_told_apart() -> None:
    assert "shorter answers" in lines(FULL, "+", phase="evaluation", activations=5.0, parameters=1.0)


def test_kept_gradients_and_precision_are_mentioned_only_where_they_are_a_choice() -> None:
    kinds = {"activations": 5.0, "parameters": 1.0, "gradients": 1.0}
    kept = Facts(batch_size=32, trainable_pct=100.0, gradients_kept=True, precision="bf16-mixed", checkpointing=True)
    assert "grads_to_none=true" in lines(kept, "+", **kinds)
    assert "grads_to_none" not in lines(FULL, "+", **kinds)
    assert "bf16" not in lines(kept, "+", **kinds)
    assert "checkpointing=true" not in lines(kept, "+", **kinds)


def test_the_report_is_printed_with_its_tables() -> None:
    console = Console(width=120)
    with console.capture() as printed:
        console.print(memory_report(memory(activations=2.0, parameters=1.0), FULL, "the title"))
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
    advice = next(line for line in text.splitlines() if "side-tuning (method=" in line)
    assert "hst" not in advice, "neither the method itself nor one whose backward visits the backbone"
    assert "dtl" not in advice
    assert "shorter answers" not in text

"""Advice is computed: each line's number is that of a plan of the same words with the change."""

from __future__ import annotations

import re

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.memory.report import amount

VIT = ["backbone=vit_tiny", "dataset=digits", "dataset.batch_size=64", "backbone.weights=random:0"]


def advice(*words: str) -> tuple[list[str], int]:
    plan = plan_run(compose(list(words)))
    return plan.advise(), plan.memory["peak"]


@pytest.mark.parametrize(
    "words",
    [
        ["method=lora", *VIT, "hardware.precision=16-mixed"],
        ["method=full", *VIT, "plan.devices=2", "plan.strategy=fsdp"],
    ],
)
def test_every_number_is_a_plans(words: list[str]) -> None:
    lines, peak = advice(*words)
    assert lines
    savings = []
    for line in lines:
        change = line[2:].split(":")[0].removesuffix(" would not help")
        own = [word for word in words if word.split("=")[0] != change.split("=")[0]]
        if change.startswith("method="):  # the other method has not this one's settings
            own = [word for word in own if not word.startswith("method.")]
        planned = plan_run(compose([*own, change])).memory["peak"]
        if line.startswith("+"):
            assert f": {amount(planned)}, {amount(peak - planned)} less" in line
            assert peak - planned >= 0.05 * peak
            savings.append(peak - planned)
        else:
            assert line == f"- {change} would not help: {amount(planned)}"
            assert peak - planned < 0.05 * peak
    assert savings == sorted(savings, reverse=True)


def test_a_preparation_that_grows_with_the_batch_is_halved_with_it() -> None:
    """What `other` holds before the first step is no fixed cost."""
    lines, _ = advice("method=tmi", "backbone=cnn_tiny", "dataset=digits", "dataset.batch_size=256",
                      "backbone.weights=random:0", "hardware=cpu")  # fmt: skip
    assert any(re.match(r"\+ dataset.batch_size=128: ", line) for line in lines)


def test_half_copies_of_weights_are_not_taken_for_the_batchs() -> None:
    """Mixed precision keeps a half copy of every frozen weight; loading them so is what saves."""
    lines, _ = advice("method=lora", *VIT[:2], "dataset.batch_size=2", VIT[3], "hardware.precision=bf16-mixed")
    order = [line.split("=")[0] for line in lines]
    assert order.index("+ backbone.load") < next(i for i, o in enumerate(order) if o.endswith("dataset.batch_size"))


@pytest.mark.parametrize("words", [["method=pretrain", *VIT], ["method=linear_probe", *VIT]])
def test_nothing_is_recommended_that_is_no_choice(words: list[str]) -> None:
    lines, _ = advice(*words)
    assert not any("method=" in line for line in lines)

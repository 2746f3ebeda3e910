"""`evidence/peft_suite`: PEFT's own measurements on a card, of which plans know nothing."""

from __future__ import annotations

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.tables import spec

SUITE = spec.read("evidence/peft_suite")
PEAK = next(column for column in SUITE.columns if column.name == "peak")
LEANEST = "beft target-v_proj"


def test_every_row_is_the_suites_setting_with_a_method_of_its_own() -> None:
    rows = [tuple(SUITE.cell_words(row, PEAK, "paper")) for row in SUITE.rows]
    assert len(set(rows)) == len(rows) == 37
    for words in rows[::6]:
        config = compose(list(words)).config
        assert (config["dataset"]["batch_size"], config["dataset"]["max_source_length"]) == (4, 768)
        assert (config["backbone"]["load"], config["hardware"]["precision"]) == ("bf16", "32-true")
        assert config["optimizer"]["name"] == "adamw"


@pytest.mark.parametrize(
    "name",
    [
        LEANEST,
        "lora rank32",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("delora rank32", "randlora default", "miss bat")),
    ],
)
def test_what_is_trained_is_met_exactly_and_the_peak_nearly(name: str) -> None:
    row = next(row for row in SUITE.rows if row.name == name)
    plan = plan_run(compose(SUITE.cell_words(row, PEAK, "paper")))
    assert plan.parameters["trainable"] == row.paper["trained"]
    assert plan.memory["peak"] / 2**30 == pytest.approx(row.paper["peak"], rel=0.025)

"""LST's vision-and-language variant from the command line: a run, its plan, and what does not go together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import parameter_counts, plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.tables.spec import read

LST = ("method=lst", "method.extra_width=8", "backbone=t5_tiny", "backbone.weights=random:0", "dataset=digit_questions")
QUICK = ("method.init_samples=8", "trainer.max_steps=12", "trainer.log_every=1", "trainer.validate_every=100",
         "trainer.progress=none", "hardware=cpu")  # fmt: skip


def test_a_run_from_words_to_scores(tmp_path: Path) -> None:
    cfg = compose([*LST, *QUICK, f"output_dir={tmp_path}"])
    folder = carry_out(cfg)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert "test/exact_match" in result["metrics"]
    assert result["memory"]["source"] == "tracker"
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_plan_needs_no_data() -> None:
    words = ("dataset=text_features", "dataset.feature_width=8", "dataset.batch_size=2", "method.init=random")
    plan = plan_run(compose([*LST, *words]), "cuda")
    assert plan.shapes["extra_embeds"][0] == (2, 36, 8)
    assert plan.memory["peak"] > 0


def test_parameters_of_table_3() -> None:
    """17.97 M of 240.9 M, 7.46 %."""
    table = read("lst/table3")
    row = next(row for row in table.rows if row.name == "lst")
    counts = parameter_counts(compose(table.cell_words(row, table.columns[0], "paper")))
    assert round(counts["trainable"] / 1e6, 2) == 17.97
    assert round(counts["trainable_pct"], 2) == row.paper["params"]
    smoke = compose(table.cell_words(row, table.columns[0], "smoke"))
    assert (smoke.config["dataset"]["name"], smoke.config["backbone"]["name"]) == ("digit_questions", "t5_tiny")


@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        (("method=full", *LST[2:]), "which method=full does not take in", "method=lst with method.extra_width=8"),
        (("method=lst", *LST[2:]), "8 wide, method.extra_width is 0", "method.extra_width=8"),
        ((*LST, "method.extra_width=9"), "8 wide, method.extra_width is 9", "method.extra_width=8"),
        ((*LST, "dataset=python_docs"), "holds no visual features", "dataset=digit_questions, text_features"),
        ((*LST, "dataset.feature_width=4"), "feature_width", "8"),
        ((*LST, "backbone=gpt2_tiny"), "asks for text_to_text", "choose backbone="),
        ((*LST, "dataset=text_features", "dataset.feature_width=8", "dataset.path=no_such.csv"), "does not exist", ""),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], reason: str, remedy: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        compose(words)
    assert remedy in str(caught.value)


def test_the_table_alone_does_not_tell_the_data(tmp_path: Path) -> None:
    """Features may lie elsewhere: where the table lies belongs to the run's identity."""
    (tmp_path / "train.csv").write_text("question,answer,features\na,b,c\n", encoding="utf-8")
    cfg = compose([*LST, "dataset=text_features", "dataset.feature_width=8", f"dataset.path={tmp_path}/train.csv"])
    assert cfg.config["contents"]["dataset.path"].endswith("+sizes")

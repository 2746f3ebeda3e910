"""Which of many runs fits: every number is the run's own plan, and whatever is left out is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.test_pages import blocks, run
from transfer_run.cli import plan as cli
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import Composer, compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.tables.choice import shown
from transfer_run.tables.choice.answer import KIND, make
from transfer_run.tables.choice.asked import candidates, several
from transfer_run.tables.choice.known import known_score

SMALL = ["backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits"]


@pytest.mark.parametrize(
    ("word", "many"),
    [("method=*", True), ("method=peft/*", True), ("method=lora,full", True), ("dataset.batch_size=8,16", True),
     ("method=lora", False), ("dataset.path=a*", False), ("dataset.batch_size=8", False)],
)  # fmt: skip
def test_words_that_ask_for_several(word: str, many: bool) -> None:
    assert several([word]) is many


def test_a_star_means_all_and_what_does_not_go_together_is_left_out_with_the_reason() -> None:
    found, left = candidates(Composer(), ["method=*", *SMALL])
    names = {each.name for each in found}
    assert names | {each.name for each in left} == set(registry.names("method"))
    assert {"lora", "lst", "vqt", "full"} <= names
    why = {each.name: each.why for each in left}
    assert why["ties"] == "its shape is combine: it adapts no model by itself"
    assert "backbone=vit_tiny" in why["zscl"]
    assert all(why.values())


def test_every_combination_has_a_name_of_its_own() -> None:
    words = ["method=lora,full", "hardware.precision=32-true,bf16-mixed", *SMALL]
    found, left = candidates(Composer(), words)
    assert [each.name for each in found] == [
        f"{method} hardware.precision={precision}"
        for method in ("lora", "full")
        for precision in ("32-true", "bf16-mixed")
    ]
    assert not left


def test_what_is_named_outright_is_refused_and_not_left_out() -> None:
    with pytest.raises(UserError, match="lsst"):
        candidates(Composer(), ["method=lora,lsst", *SMALL])


def test_a_star_that_means_nothing() -> None:
    with pytest.raises(UserError, match="No method is named like 'zz\\*'"):
        candidates(Composer(), ["method=zz*", *SMALL])


def test_every_number_is_the_plans_of_the_run() -> None:
    words = ["method=lora", *SMALL, "plan.budget=1GiB", "dataset.batch_size=64"]
    run = compose(words)
    content, plan = make(KIND, run), plan_run(compose(words))
    assert plan.budget is not None
    assert content["memory"]["peak"] == plan.memory["peak"]
    assert content["largest_batch"] == plan.budget.batch_size
    assert content["parameters"] == plan.parameters
    assert content["batch_size"] == 64
    assert content["fits"] is (plan.budget.batch_size >= 64)
    assert content["flops"] > 64 * 2 * plan.parameters["trainable"]


def answered(name: str, peak: int, fits: bool, least: dict[str, object] | None = None) -> shown.Answered:
    kinds = dict.fromkeys(("parameters", "gradients", "optimizer", "activations", "inputs", "other"), 0)
    content = {
        "memory": {"peak": peak, "peak_phase": "backward", "by_kind": {**kinds, "activations": peak}},
        "parameters": {"total": 10, "trainable": 1, "trainable_pct": 10.0},
        "batch_size": 8, "flops": 1e12, "fits": fits, "largest_batch": 9, "least": least, "score": None,
    }  # fmt: skip
    return name, content


def test_best_first() -> None:
    fitting = {"words": ["hardware.precision=bf16-mixed"], "peak": 5, "fits": True}
    never = {"words": [], "peak": 9, "fits": False}
    rows = [answered("never", 9, False, never), answered("changed", 30, False, fitting),
            answered("large", 4, True), answered("small", 3, True)]  # fmt: skip
    assert [name for name, _ in shown.best_first(rows)] == ["small", "large", "changed", "never"]
    assert "> changed: fits with hardware.precision=bf16-mixed (0.0 MiB)" in shown.lines(rows, [])
    assert "> never: no change that is known here lowers its peak" in shown.lines(rows, [])


def test_a_recorded_score_is_known_and_a_papers_is_marked() -> None:
    ours = known_score(compose(["method=lst"]))
    assert ours is not None
    assert (ours["table"], ours["of"]) == ("evidence/python_docs", "ours")
    papers = known_score(compose(["method=lst", "backbone=t5-base", "dataset=glue/rte", "backbone.weights=random"]))
    assert papers is not None
    assert papers["of"] in ("paper", "recalled")
    assert known_score(compose(["method=layernorm", *SMALL])) is None
    # another method's table has rows of full fine-tuning on digits, for few steps: none of them is full's score
    assert known_score(compose(["method=full", "backbone=vit_tiny", "dataset=digits"])) is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["method=full,linear_probe", *SMALL, "plan.budget=1GiB", "plan.picture=seen.png", "plan.advice=false"]
    assert cli.plan(words) == 0
    text = capsys.readouterr()
    assert text.out.index("linear_probe") < text.out.index("full  ")
    assert "planned 2 of 2" in text.err
    assert Image.open(tmp_path / "seen.png").size[0] > 1000
    assert cli.plan([*words[:-2], "plan.format=json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in content["choices"]] == ["linear_probe", "full"]
    assert content["choices"][1]["memory"]["peak"] == plan_run(compose(["method=full", *SMALL])).memory["peak"]


def test_one_run_against_another(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method=lora", *SMALL, "dataset.batch_size=16"]
    assert cli.plan([*words, "plan.against=method=full dataset.batch_size=8", "plan.format=json"]) == 0
    found = {each["run"]: each for each in json.loads(capsys.readouterr().out)["choices"]}
    assert found["as asked"]["memory"]["peak"] == plan_run(compose(words)).memory["peak"]
    other = compose(["method=full", *SMALL, "dataset.batch_size=8"])
    assert found["method=full dataset.batch_size=8"]["memory"]["peak"] == plan_run(other).memory["peak"]


@pytest.mark.parametrize(
    ("words", "what"),
    [(["method=lora", "plan.picture=a.png"], "several runs"), (["method=lora,full", "plan.picture=a.txt"], "no PNG"),
     (["method=lora,full", "plan.against=seed=1"], "beside one run"),
     (["method=lora", "plan.against=methd=full"], "methd"),
     (["method=*", "plan.card=l5"], "No card")],
)  # fmt: skip
def test_wrong_words(words: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        cli.plan([*words, *SMALL])


def test_a_line_of_the_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(shown.as_table([answered("peft/adalora", 3 * 2**30, True)], "method=*"))
    line = next(line for line in console.export_text().splitlines() if "peft/adalora" in line)
    assert "activations 100 %" in line


@pytest.mark.long
def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """docs/planning.md, as it stands."""
    for block in blocks("docs/planning.md", "sh"):
        for command in block.strip().splitlines():
            done = run(command, tmp_path)
            assert done.returncode == 0, done.stderr
            assert "digits" in done.stdout
    assert (tmp_path / "choice.png").is_file()

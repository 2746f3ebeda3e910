"""Rows of shipped tables whose words once named something else than their paper's method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.tables.spec import Row, TableSpec, names, read

RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "tables"


def rows(tables: str, row: str) -> Iterator[tuple[TableSpec, Row]]:
    """The rows of that name of all tables below a folder that a run or a plan can produce."""
    for name in names():
        if name.startswith(f"{tables}/"):
            spec = read(name)
            yield from ((spec, each) for each in spec.rows if each.name == row and each.words is not None)


def test_ties_elects_signs_where_it_is_called_so() -> None:
    """`sum` and `mean` leave the election out: they are task arithmetic on trimmed changes."""
    found = list(rows("ties", "ties"))
    assert len(found) >= 2
    for spec, row in found:
        merge = compose(list(spec.cell_words(row, spec.columns[0], "paper"))).config["method"]["merge"]
        assert merge.startswith("dis-"), spec.name


def test_the_adapter_of_unified_petl_has_that_papers_settings() -> None:
    """A norm before the adapter behind attention, weights of 0.02; betas and epsilon as RoBERTa was trained with."""
    [(spec, row)] = rows("unified_petl", "adapter")
    config = compose(list(spec.cell_words(row, spec.columns[-1], "paper"))).config
    assert config["method"]["attention_layernorm"] == "in"
    assert config["method"]["init_std"] == 0.02
    for each in spec.rows:
        if each.words is not None:
            optimizer = compose(list(spec.cell_words(each, spec.columns[-1], "paper"))).config["optimizer"]
            assert (optimizer["betas"], optimizer["eps"]) == ([0.9, 0.98], 1e-6)


def test_icarl_distils_from_the_task_before() -> None:
    found = list(rows("zscl", "icarl"))
    assert len(found) >= 2
    for spec, row in found:
        method = compose(list(spec.cell_words(row, spec.columns[0], "paper"))).config["method"]
        assert method["distill"]["teacher"] == "previous", spec.name


def recorded(name: str) -> dict[tuple[str, str], float]:
    """What a recorded table found, by row and column."""
    cells = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))["cells"]
    return {(cell["row"], cell["column"]): cell["ours"] for cell in cells}


def test_an_intermediate_task_of_the_domain_helps() -> None:
    found = recorded("double_finetuning_docs")
    scores = {row: value for (row, column), value in found.items() if column == "accuracy"}
    matched = scores.pop("answers to questions first, 800 pairs")
    assert len(scores) == 2
    assert matched > max(scores.values()) + 2


@pytest.mark.parametrize(
    ("method", "says"),
    [("dp4tl", "does not beat a random one"), ("ties", "keep=0.2 trails the plain average")],
)
def test_pages_own_up_to_choices_that_lose(method: str, says: str) -> None:
    assert says in " ".join(registry.entry("method", method).content["method"]["about"]["choose"].split())

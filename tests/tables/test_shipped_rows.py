"""Rows of shipped tables whose words once named something else than their paper's method."""

from __future__ import annotations

from collections.abc import Iterator

from transfer_run.experiment.config.compose import compose
from transfer_run.tables.spec import Row, TableSpec, names, read


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

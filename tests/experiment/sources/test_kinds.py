"""Sources whose names a key of the method lists: all of them, and no other."""

from __future__ import annotations

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.sources.kinds import check_sources
from transfer_run.experiment.sources.resolve import sources_of

FULL = "method=full backbone=vit_tiny dataset=digits"
WORDS = ["method=knowledge_transfer", "backbone=vit_tiny", "dataset=digits", "method.teachers=[a,b]"]


def check(*more: str) -> None:
    run = compose([*WORDS, *more])
    check_sources(run, sources_of(run))


def test_all_that_are_listed_are_read() -> None:
    check(f"sources.a={FULL}", f"sources.b={FULL} seed=1")


def test_one_that_is_listed_is_missing() -> None:
    with pytest.raises(
        UserError, match=r"needs a source 'b' with method.teachers=\['a', 'b'\], and the run names none"
    ):
        check(f"sources.a={FULL}")


def test_one_that_is_not_listed() -> None:
    with pytest.raises(UserError, match="reads no source 'c': it reads a, b"):
        check(f"sources.a={FULL}", f"sources.b={FULL} seed=1", f"sources.c={FULL} seed=2")

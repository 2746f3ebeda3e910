"""peft's layers are planned without values: the same bytes as of those that are built for real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning import plan
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.methods.tuning.attach import inject


def real(build: Callable[[], object]) -> object:
    """As it was done before: peft's new tensors on the CPU."""
    return build()


def refused(build: Callable[[], object]) -> object:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(
    ("method", "where"),
    [("peft/boft", "backbone=vit_tiny dataset=digits"), ("peft/boft", "backbone=bert_tiny dataset=python_docs"),
     ("peft/unilora", "backbone=vit_tiny dataset=digits")],
)  # fmt: skip
def test_a_plan_on_meta_has_the_bytes_of_a_real_one(method: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose([f"method={method}", *where.split()])
    monkeypatch.setattr(plan, "on_meta", refused)  # no way back to real tensors
    found = plan_run(run, "cpu")
    monkeypatch.setattr(inject, "without_values", lambda on_meta: contextlib.nullcontext())
    monkeypatch.setattr(plan, "on_meta", real)
    expected = plan_run(run, "cpu")
    assert found.memory["phases"] == expected.memory["phases"]
    assert found.parameters == expected.parameters

"""What a search among merges goes by."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest

from transfer_run.data.scores.direction import first_best
from transfer_run.data.scores.labels import Scores
from transfer_run.errors import UserError
from transfer_run.methods.merging.base import Merging
from transfer_run.task import Task


def source(name: str, task: Task) -> Any:
    return SimpleNamespace(name=name, task=task, data=SimpleNamespace(metrics=lambda split: Scores(task)))


ACCURACY = source("a", Task("classification", 2, metrics=("accuracy",)))
ERROR = source("b", Task("regression", 1, metrics=("mse",)))


def test_a_search_takes_the_smallest_error_and_the_largest_accuracy() -> None:
    means = [0.5, 0.3, 0.3, 0.7]
    assert first_best(means, Merging._direction([ERROR, ERROR])) == 1
    assert first_best(means, Merging._direction([ACCURACY])) == 3
    assert first_best([0.1], operator.gt) == 0


def test_a_mean_of_accuracies_and_errors_is_refused() -> None:
    with pytest.raises(UserError, match="better large, another one small") as caught:
        Merging._direction([ACCURACY, ERROR])
    assert caught.value.where == "accuracy of sources.a, mse of sources.b"

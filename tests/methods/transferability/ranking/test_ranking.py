"""Rankings, reference accuracies, and the picture."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import weightedtau

from transfer_run.errors import UserError
from transfer_run.methods.transfer_scores.all import SCORES, Material, score_all
from transfer_run.methods.transferability.ranking.picture import draw
from transfer_run.methods.transferability.ranking.ranking import agreement, missing_taus, ranking, ranking_table
from transfer_run.methods.transferability.ranking.reference import accuracies_of_runs, given_accuracies

SCORED = {"a": 1.0, "b": 3.0, "c": 2.0, "d": -1.0}


def test_the_best_score_comes_first() -> None:
    assert ranking(SCORED) == ["b", "c", "a", "d"]


def test_agreement_looks_only_at_what_has_both() -> None:
    found = agreement(SCORED, {"a": 0.7, "b": 0.9, "c": 0.5, "z": 0.1})
    assert found is not None
    assert found["candidates"] == 3
    assert_allclose(found["weighted_tau"], weightedtau([1, 3, 2], [0.7, 0.9, 0.5]).statistic)
    assert_allclose([found["top5_mean"], found["top5_best"]], [0.7, 0.9])
    assert agreement(SCORED, {"a": 0.7}) is None


def test_agreement_of_the_five_best_of_many() -> None:
    scores = {str(i): float(i) for i in range(8)}
    found = agreement(scores, {str(i): i / 10 for i in range(8)})
    assert found is not None
    assert_allclose([found["weighted_tau"], found["top5_mean"], found["top5_best"]], [1.0, 0.5, 0.7])


def test_equal_scores_have_no_tau() -> None:
    found = agreement({"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 0.6})
    assert found is not None
    assert found["weighted_tau"] is None


def test_table_shows_ranks_gaps_and_tau() -> None:
    scores = {"tmi": SCORED, "nce": {"a": -0.5, "b": -0.1}}
    accuracies = {"a": 0.7, "b": 0.9}
    lines = ranking_table(scores, accuracies, {name: agreement(values, accuracies) for name, values in scores.items()})
    cells = [line.split() for line in lines]
    assert cells[0] == ["tmi", "nce", "accuracy"]
    assert cells[1] == ["b", "3.0000", "[1]", "-0.1000", "[1]", "0.9000"]
    assert cells[2] == ["c", "2.0000", "[2]", "-", "-"]
    assert cells[-1] == ["weighted", "tau", "+1.000", "+1.000"]


# ---- reference accuracies
def test_given_accuracies_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "accuracies.json"
    path.write_text('{"vit_tiny": 0.97, "cnn_tiny": 1}', encoding="utf-8")
    assert given_accuracies(str(path)) == {"vit_tiny": 0.97, "cnn_tiny": 1.0}
    assert given_accuracies({"vit_tiny": 0.97}) == {"vit_tiny": 0.97}
    assert given_accuracies(None) == {}


@pytest.mark.parametrize("content", [None, "{", "[1, 2]", '{"vit_tiny": "good"}', '{"vit_tiny": true}'])
def test_unreadable_accuracies_are_the_users_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "accuracies.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        given_accuracies(str(path))
    assert error.value.where == "method.reference"


def test_accuracies_of_runs_from_the_same_weights(tmp_path: Path, finished: Callable[..., Path]) -> None:
    folders = [
        finished(tmp_path / "seed0", "one", 0.8),
        finished(tmp_path / "seed1", "one", 0.9),
        finished(tmp_path / "seed2", "one", 0.7),
        finished(tmp_path / "probe", "one", 0.99, method="linear_probe"),
        finished(tmp_path / "broken", "two", 0.95, status="failed"),
        finished(tmp_path / "untested", "two", 0.0, metrics={"validation/accuracy": 0.6}),
        finished(tmp_path / "stranger", "three", 1.0),
        tmp_path / "not there",
    ]
    checksums = {"a": "one", "b": "two", "c": "four"}
    assert accuracies_of_runs(tmp_path, folders, checksums, "accuracy", operator.gt, "full") == {"a": 0.9, "b": 0.6}
    assert accuracies_of_runs(tmp_path, folders, checksums, "accuracy", operator.gt, None) == {"a": 0.99, "b": 0.6}
    assert accuracies_of_runs(tmp_path, folders, checksums, "f1", operator.gt, None) == {}


def test_of_several_runs_validation_chooses_and_the_test_counts(tmp_path: Path, finished: Callable[..., Path]) -> None:
    both = [{"validation/accuracy": 0.9, "test/accuracy": 0.8}, {"validation/accuracy": 0.7, "test/accuracy": 0.95}]
    folders = [finished(tmp_path / str(i), "one", 0.0, metrics=metrics) for i, metrics in enumerate(both)]
    said: list[str] = []
    asked = ({"a": "one"}, "accuracy", operator.gt, "full", said.append)
    assert accuracies_of_runs(tmp_path, folders, *asked) == {"a": 0.8}
    assert said.pop() == "accuracy of a: of 2 runs the best by its validation accuracy"
    folders.append(finished(tmp_path / "untold", "one", 0.85))  # tested alone
    assert accuracies_of_runs(tmp_path, folders, *asked) == {"a": 0.95}
    assert "3 runs the best by its test accuracy, for not all" in said.pop()
    assert accuracies_of_runs(tmp_path, folders[:1], *asked) == {"a": 0.8}
    assert not said


def test_of_several_runs_the_smallest_error_counts(tmp_path: Path, finished: Callable[..., Path]) -> None:
    errors = [{"validation/mse": 0.4, "test/mse": 0.5}, {"validation/mse": 0.3, "test/mse": 0.6}]
    folders = [finished(tmp_path / str(i), "one", 0.0, metrics=metrics) for i, metrics in enumerate(errors)]
    assert accuracies_of_runs(tmp_path, folders, {"a": "one"}, "mse", operator.lt, "full") == {"a": 0.6}


def test_scores_agree_with_errors_that_fall() -> None:
    falling = {"a": 0.3, "b": 0.1, "c": 0.2, "d": 0.4}
    assert (found := agreement(SCORED, falling, operator.lt))
    assert found["weighted_tau"] == pytest.approx(1.0)
    assert found["top5_best"] == 0.1


def test_a_missing_tau_has_a_reason() -> None:
    scores = {"tmi": SCORED, "nce": {"a": -0.5}, "lfc": {"a": 1.0, "b": 1.0}}
    equal, few, other = {"a": 0.7, "b": 0.7}, {"a": 0.7}, {"a": 0.7, "b": 0.9}

    def why(accuracies: dict[str, float]) -> list[str]:
        return missing_taus(scores, accuracies, {name: agreement(s, accuracies) for name, s in scores.items()})

    alone = "no weighted tau of nce: 1 of 1 have an accuracy"
    assert why(equal) == ["no weighted tau of tmi, lfc: all accuracies compared are equal", alone]
    assert why(few)[0] == "no weighted tau of tmi: 1 of 4 have an accuracy"
    assert why(other) == [alone, "no weighted tau of lfc: all scores compared are equal"]
    assert why({}) == []


def test_accuracies_on_another_part_of_the_data_do_not_count(tmp_path: Path, finished: Callable[..., Path]) -> None:
    digits = {"name": "digits", "classes": [5, 6], "batch_size": 32}
    own = finished(tmp_path / "own", "", 0.0, dataset=digits)
    folders = [
        finished(tmp_path / "larger batch", "one", 0.8, dataset=digits | {"batch_size": 64}),
        finished(tmp_path / "other classes", "one", 0.9, dataset=digits | {"classes": [0, 1]}),
    ]
    assert accuracies_of_runs(own, folders, {"a": "one"}, "accuracy", operator.gt, "full") == {"a": 0.8}


# ---- scores that cannot be had
def material(**changes: Any) -> Material:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 10)
    return Material(**({"features": 5 * rng.normal(size=(30, 4)), "labels": labels, "source": None} | changes))


def settings_of(**changes: Any) -> dict[str, Any]:
    return {"tmi": {"divide_by_classes": True}, "parc": {"samples": None}} | changes


def test_scores_of_the_source_classifier_are_skipped_without_one() -> None:
    found = score_all(material(), list(SCORES), settings_of())
    assert set(found.skipped) == {"leep", "nce"}
    assert "classifier" in found.skipped["leep"]
    assert set(found.values) == set(found.seconds) == set(SCORES) - {"leep", "nce"}
    assert found.floored is not None
    assert 0 <= found.floored < 1


def test_scores_of_the_source_classifier_are_there_with_one() -> None:
    source = np.random.default_rng(0).dirichlet(np.ones(5), 30)
    found = score_all(material(source=source), ["leep", "nce"], settings_of())
    assert not found.skipped
    assert all(value < 0 for value in found.values.values())


def test_a_regression_has_logme_alone() -> None:
    found = score_all(material(labels=np.random.default_rng(0).normal(size=30)), list(SCORES), settings_of())
    assert set(found.values) == {"logme"}
    assert "regression" in found.skipped["tmi"]


def test_a_score_that_is_not_finite_is_skipped() -> None:
    found = score_all(material(features=np.zeros((30, 4))), ["logme", "hscore"], settings_of())
    assert found.values == {"hscore": 0.0}
    assert "finite" in found.skipped["logme"]


def test_parc_looks_at_a_balanced_subset() -> None:
    whole = score_all(material(), ["parc"], settings_of()).values["parc"]
    part = score_all(material(), ["parc"], settings_of(parc={"samples": 12})).values["parc"]
    assert part != whole
    assert score_all(material(), ["parc"], settings_of(parc={"samples": 30})).values["parc"] == whole


# ---- the picture
@pytest.mark.parametrize("kind", ["bars", "scatter", "depth"])
def test_the_picture_is_a_png(tmp_path: Path, kind: str) -> None:
    accuracies = {"a": 0.7, "b": 0.9} if kind == "scatter" else {}
    layers = {"vit": ["d", "a", "c"], "cnn": ["b"]} if kind == "depth" else {}
    scores = {f"score{i}": SCORED for i in range(6)}
    agreements = {name: agreement(values, accuracies) for name, values in scores.items()}
    draw(tmp_path / "ranking.png", scores, accuracies, agreements, layers)
    content = (tmp_path / "ranking.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 5000

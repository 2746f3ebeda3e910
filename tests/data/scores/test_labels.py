"""Scores against scikit-learn and scipy; wrong answers, missing labels, several ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef
from transformers import ByT5Tokenizer

from transfer_run.data.scores.labels import Scores
from transfer_run.data.text.answers import Answers
from transfer_run.errors import UserError
from transfer_run.task import Task

TOKENIZER = ByT5Tokenizer()
CLASS_METRICS = ("accuracy", "mean_class_accuracy", "f1", "f1_macro", "matthews")


def in_batches(scores: Scores, predictions: torch.Tensor, labels: torch.Tensor, size: int = 7) -> dict[str, float]:
    for part in range(0, len(labels), size):
        scores.update(predictions[part : part + size], {"labels": labels[part : part + size]})
    return scores.compute()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10_000))
def test_class_metrics_agree_with_scikit_learn(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, 40)])
    predictions = np.where(random.random(len(labels)) < 0.5, labels, random.integers(0, classes, len(labels)))
    scores = Scores(Task("classification", classes, metrics=CLASS_METRICS))
    ours = in_batches(scores, torch.tensor(predictions), torch.tensor(labels))
    assert list(ours) == list(CLASS_METRICS)
    average = "binary" if classes == 2 else "macro"
    theirs = {
        "accuracy": accuracy_score(labels, predictions),
        "mean_class_accuracy": balanced_accuracy_score(labels, predictions),
        "f1": f1_score(labels, predictions, average=average, zero_division=0),
        "f1_macro": f1_score(labels, predictions, average="macro", zero_division=0),
        "matthews": matthews_corrcoef(labels, predictions),
    }
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("form", "metrics", "larger"),
    [
        ("classification", ("accuracy", "perplexity"), True),
        ("classification", ("f1_macro",), True),
        ("regression", ("mse",), False),
        ("regression", ("mae", "pearson"), False),
        ("regression", ("glue", "pearson", "spearman"), True),
        ("text_to_text", ("exact_match",), True),
        ("language_modeling", ("perplexity",), False),
    ],
)
def test_the_headline_knows_whether_large_or_small_is_better(form: str, metrics: tuple[str, ...], larger: bool) -> None:
    scores = Scores(Task(form, 3, metrics=metrics))
    assert scores.better(1.0, 0.0) == larger
    assert scores.better(0.0, 1.0) != larger
    assert not any(scores.better(*pair) for pair in [(1.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])


def test_correlations_agree_with_scipy() -> None:
    labels = torch.rand(60, generator=torch.Generator().manual_seed(0)) * 5
    predictions = labels + torch.randn(60, generator=torch.Generator().manual_seed(1))
    scores = Scores(Task("regression", 1, metrics=("glue", "pearson", "spearman")))
    ours = in_batches(scores, predictions, labels)
    pearson, spearman = pearsonr(predictions, labels)[0], spearmanr(predictions, labels)[0]
    assert ours == pytest.approx({"glue": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}, abs=1e-5)
    scores.reset()
    assert in_batches(scores, torch.ones(9), labels[:9])["pearson"] == 0  # a constant answer correlates with nothing


def test_rows_without_a_label_are_not_scored() -> None:
    scores = Scores(Task("classification", 3, metrics=("accuracy", "matthews")))
    scores.update(torch.tensor([0, 1, 2, 2]), {"labels": torch.tensor([0, -100, 1, -1])})
    assert scores.compute()["accuracy"] == pytest.approx(0.5)
    scores.reset()
    scores.update(torch.tensor([0, 1]), {"labels": torch.tensor([-100, -100])})
    assert scores.compute() == {}
    values = Scores(Task("regression", 1, metrics=("mse",)))
    values.update(torch.tensor([1.0, 9.0]), {"labels": torch.tensor([2.0, math.nan])})
    assert values.compute() == {"mse": 1.0}
    values.reset()
    values.update(torch.tensor([1.0]), {"labels": torch.tensor([math.nan])})
    assert values.compute() == {}


def written(*words: str, length: int = 12) -> torch.Tensor:
    """Generated ids: the word, the end, then whatever."""
    rows = [TOKENIZER(word)["input_ids"] for word in words]
    return torch.tensor([[*row, 0, 70, 71, 0][:length] + [0] * (length - len(row) - 4) for row in rows])


def test_answers_in_words_are_read_as_labels() -> None:
    task = Task("text_to_text", 3, ("yes", "no", "maybe"), ("accuracy",), 8)
    answers = Answers(task, TOKENIZER)
    assert answers.read(written("yes", "no", "maybe", "yess", "", " no ")).tolist() == [0, 1, 2, -1, -1, 1]
    ids, target = answers.encode(2)
    assert (TOKENIZER.decode(ids[:-1]), ids[-1], target) == ("maybe", TOKENIZER.eos_token_id, 2)
    assert answers.encode(-1) == ([-100], -1)
    scores = Scores(task, answers)
    batch = {"labels": torch.zeros(4, 2, dtype=torch.int64), "targets": torch.tensor([0, 1, 2, -1])}
    scores.update(written("yes", "nonsense", "maybe", "no"), batch)
    assert scores.compute()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("target", [0, 1])
def test_nonsense_is_wrong_whatever_the_label(target: int) -> None:
    task = Task("text_to_text", 2, ("0", "1"), ("accuracy", "f1", "matthews"), 3)
    scores = Scores(task, Answers(task, TOKENIZER))
    batch = {"labels": torch.zeros(2, 2, dtype=torch.int64), "targets": torch.tensor([target, target])}
    scores.update(written("?", "2"), batch)
    assert scores.compute()["accuracy"] == scores.compute()["f1"] == 0


def test_answers_in_numbers() -> None:
    task = Task("text_to_text", 0, (), ("pearson",), 5)
    answers = Answers(task, TOKENIZER, values=True, step=0.2)
    assert answers.read(written("3.8", "0.0", "many", "inf", "5")).tolist() == pytest.approx([3.8, 0, -1, -1, 5])
    ids, target = answers.encode(3.71)
    assert (TOKENIZER.decode(ids[:-1]), target) == ("3.8", 3.71)
    assert math.isnan(answers.encode(math.nan)[1])  # type: ignore[arg-type]


def test_free_answers_match_exactly_or_not() -> None:
    task = Task("text_to_text", 0, (), ("exact_match",), 12)
    answers = Answers(task, TOKENIZER)
    scores = Scores(task, answers)
    labels = [answers.encode(text)[0] for text in ("a cat", "a dog", "a fish")] + [[-100]]
    padded = torch.tensor([row + [-100] * (8 - len(row)) for row in labels])
    scores.update(written("a cat", "a dig", "a fish", "a fox"), {"labels": padded})
    assert scores.compute()["exact_match"] == pytest.approx(2 / 3)


def test_a_right_answer_that_is_cut_is_met_by_nothing() -> None:
    """Many answers have one beginning; it is none of them."""
    task = Task("text_to_text", 0, (), ("exact_match",), 4)
    answers = Answers(task, TOKENIZER)
    labels = torch.tensor([answers.encode(text)[0] for text in ("abcde", "abcdf", "abc")])
    scores = Scores(task, answers)
    scores.update(labels, {"labels": labels})
    assert scores.compute()["exact_match"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("lowest", [-30.0, 0.0, 1000.0])
def test_no_number_is_below_all_that_was_trained_on(lowest: float) -> None:
    answers = Answers(Task("text_to_text", 0, (), ("mae",), 8), TOKENIZER, values=True, step=None, lowest=lowest)
    assert answers.read(written("x", "1e3", "-inf")).tolist() == [min(-1, lowest - 1), 1000, min(-1, lowest - 1)]


def test_perplexity_is_of_all_tokens_together() -> None:
    scores = Scores(Task("text_to_text", 0, metrics=("perplexity",)))
    assert scores.needs_loss
    assert not scores.needs_predictions
    long, short = torch.zeros(1, 30, dtype=torch.int64), torch.full((1, 30), -100)
    short[0, :10] = 5
    scores.update(None, {"labels": long}, torch.tensor(1.0))
    scores.update(None, {"labels": short}, torch.tensor(3.0))
    scores.update(None, {"labels": torch.full((1, 4), -100)}, torch.tensor(math.nan))  # nothing to score
    assert scores.compute()["perplexity"] == pytest.approx(math.exp((30 * 1 + 10 * 3) / 40))
    with pytest.raises(ValueError, match="loss"):
        scores.update(None, {"labels": long})


@pytest.mark.parametrize(
    ("form", "metric", "near"),
    [("classification", "acuracy", "accuracy"), ("regression", "accuracy", None), ("language_modeling", "f1", None)],
)
def test_a_metric_that_does_not_fit_is_refused(form: Any, metric: str, near: str | None) -> None:
    with pytest.raises(UserError) as caught:
        Scores(Task(form, 2, metrics=(metric,)))
    assert caught.value.where == "dataset.metrics"
    assert near is None or near in caught.value.nearest


def test_answers_longer_than_planned_are_refused() -> None:
    with pytest.raises(UserError, match="'importlib' has 10 tokens"):
        Answers(Task("text_to_text", 2, ("xml", "importlib"), max_target_length=4), TOKENIZER)


def _rank(rank: int, file: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    classes = Scores(Task("classification", 2, metrics=("accuracy", "f1")))
    values = Scores(Task("regression", 1, metrics=("pearson", "spearman")))
    rows = slice(0, 9) if rank == 0 else slice(9, 10)  # the second rank has one row, and it has no label
    labels, predictions = torch.tensor([0, 1] * 4 + [1, -100])[rows], torch.tensor([0, 1, 1, 1, 0, 0, 0, 1, 1, 0])[rows]
    numbers = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, math.nan])[rows]
    guesses = torch.tensor([1.0, 2, 3, 9, 5, 6, 7, 8, 4, 0])[rows]
    classes.update(predictions, {"labels": labels})
    values.update(guesses, {"labels": numbers})
    torch.save(classes.compute() | values.compute(), f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # a process that leaves first ends the other one
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_are_scored_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "file"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    labels, predictions = [0, 1] * 4 + [1], [0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert first["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert first["f1"] == pytest.approx(f1_score(labels, predictions))
    assert first["pearson"] == pytest.approx(pearsonr(range(1, 10), [1, 2, 3, 9, 5, 6, 7, 8, 4])[0], abs=1e-5)


def test_names_that_are_refused_early_are_those_that_there_are() -> None:
    from transfer_run.data.scores import labels, names
    from transfer_run.data.scores.classes import CLASSES
    from transfer_run.data.scores.texts import COMPARED

    of_classes = {*CLASSES, names.BY_CLASS, *names.ORDERED}
    kinds = {"classes": of_classes, "values": labels.VALUES, "texts": COMPARED, "loss": labels.RUNNING}
    assert {kind: set(known) for kind, known in names.OF_KIND.items()} == {k: set(v) for k, v in kinds.items()}
    assert set(names.LOSSES) == set(labels.LOSSES)

"""Every shipped score against scikit-learn, scipy or a plain computation, on random and on degenerate inputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
)

from transfer_run.data.long_tail import OF_GROUP
from transfer_run.data.scores.classes import CLASSES
from transfer_run.data.scores.labels import LOSSES, MEAN, VALUES, Scores
from transfer_run.data.scores.names import RETRIEVAL as NAMES
from transfer_run.data.scores.names import RSUM
from transfer_run.data.scores.retrieval import RetrievalScores
from transfer_run.data.scores.texts import COMPARED
from transfer_run.task import Task

Rows = tuple[np.ndarray, np.ndarray]

OF_CLASSES: Mapping[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "accuracy": lambda right, said, n: accuracy_score(right, said),
    "mean_class_accuracy": lambda right, said, n: balanced_accuracy_score(right, said),
    "f1": lambda right, said, n: f1_score(right, said, average="binary" if n == 2 else "macro", zero_division=0),
    "f1_macro": lambda right, said, n: f1_score(right, said, average="macro", zero_division=0),
    "matthews": lambda right, said, n: matthews_corrcoef(right, said),
}
OF_VALUES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": lambda right, said: pearsonr(said, right)[0],
    "spearman": lambda right, said: spearmanr(said, right)[0],
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
}


def scored(task: Task, said: np.ndarray, right: np.ndarray, size: int = 7) -> dict[str, float]:
    scores = Scores(task)
    for at in range(0, len(right), size):
        scores.update(torch.tensor(said[at : at + size]), {"labels": torch.tensor(right[at : at + size])})
    return scores.compute()


def class_inputs() -> Sequence[tuple[int, Rows]]:
    """(classes, (right, said)): random ones, and all that is degenerate about classes."""
    random = np.random.default_rng(7)
    drawn = [(n, (random.integers(0, n, 60), random.integers(0, n, 60))) for n in (2, 3, 5, 40)]
    few = [(n, (random.integers(0, n, 3), random.integers(0, n, 3))) for n in (2, 4, 9) for _ in range(12)]
    absent = (3, (np.array([0] * 12 + [1] * 12), np.array([0] * 12 + [1] * 6 + [2] * 6)))  # class 2 has no rows: 0.75
    never_said = (3, (np.array([0, 1, 2, 2]), np.array([0, 1, 1, 1])))
    one_class = [(2, (np.zeros(5, int), np.zeros(5, int))), (2, (np.ones(5, int), np.ones(5, int)))]
    one_answer = [(2, (np.array([0, 1, 1]), np.zeros(3, int))), (3, (np.array([0, 1, 2]), np.full(3, 2)))]
    all_wrong = [(2, (np.array([0, 1]), np.array([1, 0]))), (3, (np.zeros(4, int), np.full(4, 2)))]
    single = [(1, (np.zeros(3, int), np.zeros(3, int))), (2, (np.array([1]), np.array([1])))]
    return [*drawn, *few, absent, never_said, *one_class, *one_answer, *all_wrong, *single]


def test_scores_of_classes_are_those_of_scikit_learn() -> None:
    assert set(OF_CLASSES) == set(CLASSES) - set(OF_GROUP)
    for classes, (right, said) in class_inputs():
        ours = scored(Task("classification", classes, metrics=tuple(OF_CLASSES)), said, right)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes that are answered and have no rows
            theirs = {name: score(right, said, classes) for name, score in OF_CLASSES.items()}
        assert ours == pytest.approx(theirs, abs=1e-9), (classes, right, said)


def test_a_class_without_rows_takes_nothing_off_the_mean_over_classes() -> None:
    right, said = np.array([0] * 12 + [1] * 12), np.array([0] * 12 + [1] * 6 + [2] * 6)
    assert scored(Task("classification", 3, metrics=("mean_class_accuracy",)), said, right) == {
        "mean_class_accuracy": 0.75
    }


def value_inputs() -> Sequence[Rows]:
    random = np.random.default_rng(8)
    near = [random.normal(size=(2, n)) for n in (2, 3, 50, 400)]
    tied = random.integers(0, 4, (2, 60)).astype(float)
    large = 1e7 + random.normal(size=(2, 300))  # what float32 cannot tell apart
    wide = np.array([[1e-6, 1.0, 1e6, -1e6], [2e-6, 3.0, -1e6, 1e6]])
    return [*((a, b) for a, b in near), (tied[0], tied[1]), (large[0], large[1]), (wide[0], wide[1])]


def test_scores_of_values_are_those_of_scipy_and_scikit_learn() -> None:
    assert set(OF_VALUES) == set(VALUES)
    for right, said in value_inputs():
        ours = scored(Task("regression", 1, metrics=tuple(VALUES)), said, right)
        theirs = {name: score(right, said) for name, score in OF_VALUES.items()}
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-9), (right, said)
        both = scored(Task("regression", 1, metrics=(MEAN, "pearson", "spearman")), said, right)
        assert both[MEAN] == pytest.approx((theirs["pearson"] + theirs["spearman"]) / 2, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("right", [np.full(6, 0.1), np.arange(6.0), np.array([2.0])])
def test_what_is_the_same_everywhere_correlates_with_nothing(right: np.ndarray) -> None:
    """scipy answers with no number, and says that the coefficient is not defined."""
    said = np.full(len(right), 0.3)
    ours = scored(Task("regression", 1, metrics=tuple(VALUES)), said, right)
    assert ours["pearson"] == ours["spearman"] == 0
    assert ours["mae"] == pytest.approx(mean_absolute_error(right, said))


def test_nothing_scored_is_no_score() -> None:
    nothing = np.zeros(0, int)
    for task, said, right in (
        (Task("classification", 3, metrics=tuple(CLASSES)), nothing, nothing),
        (Task("classification", 3, metrics=tuple(CLASSES)), np.array([1, 2]), np.array([-1, -100])),
        (Task("regression", 1, metrics=tuple(VALUES)), np.array([1.0]), np.array([math.nan])),
    ):
        assert scored(task, said, right) == {}


def test_perplexity_is_that_of_all_tokens() -> None:
    assert set(LOSSES) == {"perplexity"}
    random = np.random.default_rng(9)
    logits, labels = torch.tensor(random.normal(size=(12, 5, 9))), torch.tensor(random.integers(0, 9, (12, 5)))
    labels[3:5, 2:] = -100
    scores = Scores(Task("language_modeling", 0, metrics=("perplexity",)))
    for at in range(0, 12, 5):
        part = slice(at, at + 5)
        loss = torch.nn.functional.cross_entropy(logits[part].flatten(0, 1), labels[part].flatten())
        scores.update(None, {"labels": labels[part]}, loss)
    chances = np.take_along_axis(
        logits.softmax(-1).numpy(), labels.clamp(min=0).numpy()[..., None], -1
    )[..., 0][labels.numpy() >= 0]  # fmt: skip
    assert scores.compute()["perplexity"] == pytest.approx(math.exp(-np.log(chances).mean()), rel=1e-9)


def test_texts_match_as_strings_do() -> None:
    assert set(COMPARED) == {"exact_match", "number_match", "rouge1", "rouge2", "rougeL"}

    class Words:
        words, values = (), False

        def whole(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(ids), dtype=torch.bool)

        def texts(self, ids: torch.Tensor) -> list[str]:
            return ["".join(chr(i) for i in row if i > 0).strip() for row in ids.tolist()]

    said, right = ["cat", "", "dog ", "a"], ["cat", "x", "dog", ""]
    ids = [torch.tensor([[*map(ord, text)] + [0] * (5 - len(text)) for text in texts]) for texts in (said, right)]
    scores = Scores(Task("text_to_text", 0, metrics=("exact_match",)), Words())  # type: ignore[arg-type]
    scores.update(ids[0], {"labels": ids[1]})
    assert scores.compute() == {"exact_match": np.mean([a.strip() == b.strip() for a, b in zip(said, right)])}  # noqa: B905


def recall(pairs: np.ndarray, owners: np.ndarray, direction: str, depth: int) -> float:
    """How often one of what belongs together is among the nearest, counted one by one."""
    first = {owner: int(np.flatnonzero(owners == owner)[0]) for owner in owners}
    images = np.stack([pairs[row, 0] for row in first.values()])
    names, captions = np.array(list(first)), pairs[:, 1]
    if direction == "image_to_text":
        queries, wanted, candidates, of = images, names, captions, owners
    else:
        queries, wanted, candidates, of = captions, owners, images, names
    found = []
    for query, owner in zip(queries, wanted, strict=True):
        order = np.argsort(-(candidates @ query), kind="stable")
        found.append(owner in of[order[:depth]])
    return float(np.mean(found))


def test_recall_is_what_counting_gives() -> None:
    random = np.random.default_rng(10)
    for rows, of in ((30, 30), (30, 11), (3, 3), (1, 1)):
        owners = np.concatenate([np.arange(of), random.integers(0, of, rows - of)])
        pairs = random.normal(size=(rows, 2, 6)).astype(np.float32)
        for row, owner in enumerate(owners):
            pairs[row, 0] = pairs[np.flatnonzero(owners == owner)[0], 0]
        pairs /= np.linalg.norm(pairs, axis=-1, keepdims=True)
        scores = RetrievalScores(Task("retrieval", 0, metrics=NAMES))
        for at in range(0, rows, 7):
            part = slice(at, at + 7)
            scores.update(torch.tensor(pairs[part]), {"labels": torch.tensor(owners[part])})
        theirs = {
            name: recall(pairs, owners, name.rpartition("_r")[0], int(name.rpartition("_r")[2]))
            for name in NAMES
            if name != RSUM
        }
        assert scores.compute() == pytest.approx({RSUM: sum(theirs.values()), **theirs})

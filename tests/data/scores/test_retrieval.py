"""Recall by hand: several captions an image, ties, rows that are not scored, several ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transfer_run.data.scores import retrieval as retrieval_scores
from transfer_run.data.scores.names import RETRIEVAL as NAMES
from transfer_run.data.scores.retrieval import RetrievalScores, first_ranks
from transfer_run.errors import UserError
from transfer_run.task import Task


def scored(images: Tensor, texts: Tensor, owners: Tensor, batch: int = 4) -> dict[str, float]:
    scores = RetrievalScores(Task("retrieval", 0, metrics=NAMES))
    for part in torch.arange(len(owners)).split(batch):
        scores.update(torch.stack([images[part], texts[part]], 1), {"labels": owners[part]})
    return scores.compute()


def test_ranks_by_hand() -> None:
    """Query 0 finds its own candidate second, query 1 first; a wrong one that is as near stands before."""
    queries, candidates = torch.eye(2), torch.tensor([[0.5, 0.1], [0.9, 0.8], [0.2, 0.8]])
    assert first_ranks(queries, candidates, torch.tensor([0, 1]), torch.tensor([0, 1, 1])).tolist() == [1, 0]
    assert first_ranks(queries, candidates, torch.tensor([0, 1]), torch.tensor([0, 1, 2])).tolist() == [1, 1]


def test_recall_by_hand() -> None:
    """Image 0 has two captions, one of them nearest; image 1's is second.

    cosines     a (of 0)   b (of 0)   c (of 1)       image to text: 0 -> b right, 1 -> b wrong: R@1 = 1/2
    image 0       0.1        0.9        0.2          text to image: a -> 0 wrong (0.1 < 0.3), b -> 0 right,
    image 1       0.3        0.6        0.5                         c -> 1 right: R@1 = 2/3
    """
    images = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    texts = torch.tensor([[0.1, 0.3, 0], [0.9, 0.6, 0], [0.2, 0.5, 0]])
    found = scored(images, texts, torch.tensor([0, 0, 1]), batch=2)
    assert found["image_to_text_r1"] == pytest.approx(1 / 2)
    assert found["text_to_image_r1"] == pytest.approx(2 / 3)
    assert [found[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (5, 10)] == [1.0] * 4
    assert found["rsum"] == pytest.approx(1 / 2 + 2 / 3 + 4)


def test_against_a_sorted_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 random pairs, in pieces of 7: the K nearest, picked one by one."""
    monkeypatch.setattr(retrieval_scores, "QUERIES_AT_ONCE", 7)
    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(60, 8, generator=draw), dim=1) for _ in range(2))
    texts = torch.nn.functional.normalize(texts + 0.7 * images, dim=1)
    found = scored(images, texts, torch.randperm(60, generator=draw))
    cosines = images @ texts.T
    for depth in (1, 5, 10):
        for name, rows in (("image_to_text", cosines), ("text_to_image", cosines.T)):
            hits = [i in rows[i].argsort(descending=True)[:depth].tolist() for i in range(60)]
            assert found[f"{name}_r{depth}"] == pytest.approx(sum(hits) / 60)


def test_a_model_that_makes_everything_alike_finds_nothing() -> None:
    same = torch.ones(50, 4)
    assert scored(same, same, torch.arange(50))["rsum"] == 0


def test_rows_that_are_not_scored_and_no_rows() -> None:
    whole = torch.eye(12)
    owners = torch.arange(12).where(torch.arange(12) < 10, -100)
    assert scored(whole, whole, owners) == scored(whole[:10], whole[:10], torch.arange(10))
    assert RetrievalScores(Task("retrieval", 0, metrics=NAMES)).compute() == {}


def test_only_what_is_asked_for_and_nothing_unknown() -> None:
    scores = RetrievalScores(Task("retrieval", 0, metrics=("text_to_image_r5",)))
    scores.update(torch.ones(3, 2, 4), {"labels": torch.arange(3)})
    assert list(scores.compute()) == ["text_to_image_r5"]
    scores.reset()
    assert scores.compute() == {}
    with pytest.raises(UserError, match="does not score retrieval") as caught:
        RetrievalScores(Task("retrieval", 0, metrics=("accuracy",)))
    assert "rsum" in caught.value.remedy

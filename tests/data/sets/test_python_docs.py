"""The documentation inside Python: the same rows everywhere, none of them in two splits."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from tests.data.conftest import data_of, nodes
from transfer_run.data.sets.python_docs import AREAS, GIVEAWAY, MORE, classified_rows, masked
from transfer_run.data.text import stdlib
from transfer_run.data.text.stdlib import docstrings, topics
from transfer_run.errors import UserError

CLASSES = tuple(module for modules in AREAS.values() for module in modules)


@pytest.fixture(scope="module")
def parts() -> list[list[Any]]:
    return classified_rows(docstrings(CLASSES))


def test_classes_are_balanced_and_splits_disjoint(parts: list[list[Any]]) -> None:
    for part in parts:
        counts = Counter(number for number, _ in part)
        assert set(counts) == set(range(len(AREAS)))
        assert len(set(counts.values())) == 1
    names = [{doc.name for _, doc in part} for part in parts]
    texts = [{doc.text for _, doc in part} for part in parts]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert not texts[0] & (texts[1] | texts[2])
    assert len(parts[0]) > 900
    assert len(parts[2]) > 250


def test_no_text_tells_its_class_by_name(docs: Any) -> None:
    for split in docs.sizes:
        for row in docs.encoders[split].rows.rows:
            assert not GIVEAWAY.search(row["text"])
    assert masked("The XMLReader of xml.sax, and HTTPServer") == "The _Reader of _.sax, and _Server"


def test_rows_do_not_depend_on_the_seed() -> None:
    first, second = (data_of("dataset=python_docs", "backbone=bert_tiny", seed=seed) for seed in (0, 1))
    assert first.sizes == second.sizes
    assert first.split("test")[:20] == second.split("test")[:20]


def test_at_least_one_column_is_read() -> None:
    with pytest.raises(UserError, match="No column is read"):
        data_of("dataset=python_docs", "backbone=bert_tiny", "dataset.text_columns=[]").setup()


def test_pretraining_text_holds_no_test_row(parts: list[list[Any]]) -> None:
    data = data_of("dataset=python_docs", "dataset.task=span_corruption", "backbone=t5_tiny")
    read = "\n".join(row["text"] for row in data.read_rows()["train"].rows)
    held_out = [masked(doc.text) for part in parts[1:] for _, doc in part]
    assert not [text for text in held_out if f"\n{text}\n" in read]
    assert len(read) > 1_000_000


def test_reading_is_quick() -> None:
    begin = time.process_time()
    docstrings.__wrapped__((*CLASSES, *MORE))
    topics()
    assert time.process_time() - begin < 5


def test_the_classes_can_be_told_apart(parts: list[list[Any]]) -> None:
    """Short runs of characters tell most of the classes: the task can be learned, and leaves much to learn."""
    texts = [[masked(doc.text)[:63] for _, doc in part] for part in parts]
    labels = [np.array([number for number, _ in part]) for part in parts]
    scores = []
    for longest in (1, 4):
        counts = CountVectorizer(analyzer="char", ngram_range=(1, longest), lowercase=False)
        model = MultinomialNB(alpha=0.1).fit(counts.fit_transform(texts[0]), labels[0])
        scores.append(model.score(counts.transform(texts[2]), labels[2]))
    assert 0.4 < scores[0] < 0.75 < scores[1] < 0.97


def test_a_python_without_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="without its source") as caught:
        docstrings(("a module that nothing has read yet",))
    assert caught.value.where == str(tmp_path)


def test_label_words_are_the_areas() -> None:
    dataset, _ = nodes("dataset=python_docs")
    assert dataset["label_names"] == list(AREAS)

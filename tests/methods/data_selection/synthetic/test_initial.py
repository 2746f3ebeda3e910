"""Where synthetic images begin: rows of each class, those nearest to the centres, classes that are small."""

from __future__ import annotations

import numpy as np
import pytest

from transfer_run.methods.data_selection.synthetic.initial import few, random_rows, representative_rows

ROWS = [np.array([0, 2, 4, 6, 8, 10]), np.array([1, 3, 5])]


def test_random_rows_are_of_their_class_and_differ() -> None:
    found = random_rows(ROWS, 3, seed=0)
    assert set(found[:3]) <= set(ROWS[0])
    assert len(set(found[:3])) == 3
    assert set(found[3:]) == set(ROWS[1])
    assert not np.array_equal(found, random_rows(ROWS, 3, seed=1))
    more = random_rows(ROWS, 5, seed=0)
    assert set(more[5:]) == set(ROWS[1])
    assert len(more) == 10


def test_representatives_are_the_nearest_to_the_centres() -> None:
    """Two bunches in each class: one row of each, the nearest to its mean; for one image the nearest to the mean."""
    logits = np.zeros((11, 2), dtype=np.float32)
    logits[[0, 2, 4], 0], logits[[6, 8, 10], 0] = (0.0, 1.0, 1.3), (10.0, 11.0, 11.2)
    logits[[1, 3, 5], 1] = (5.0, 5.9, 7.0)
    assert set(representative_rows(ROWS, logits, 2, seed=0)[:2]) == {2, 8}
    assert representative_rows(ROWS, logits, 1, seed=0)[1] == 3
    every = representative_rows(ROWS, logits, 4, seed=0)
    assert len(set(every[:4])) == 4
    assert set(every[4:]) == {1, 3, 5}


def test_small_classes_are_named() -> None:
    assert few(ROWS, 3, ("a", "b")) == ""
    assert "b (3)" in few(ROWS, 4, ("a", "b"))
    assert "a (6)" not in few(ROWS, 4, ("a", "b"))
    assert few(ROWS, 7, ("a", "b")).endswith("a (6), b (3)")


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_rows_as_images(count: int) -> None:
    logits = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    assert len(representative_rows(ROWS, logits, count, seed=3)) == 2 * count

"""What similarities must not see: turns, scales, the order of images, the names of classes."""

from __future__ import annotations

import numpy as np
import pytest

from transfer_run.methods.transfer_scores.alike import cka, dds, logistic, neighbour, rsa
from transfer_run.methods.transfer_scores.classes import one_hot
from transfer_run.methods.transfer_scores.parc import parc

DRAW = np.random.default_rng(4)
FEATURES, OTHER, LABELS = DRAW.normal(size=(40, 6)), DRAW.normal(size=(40, 5)), np.arange(40) % 4


def test_linear_cka() -> None:
    turn = np.linalg.qr(DRAW.normal(size=(6, 6)))[0]
    assert cka(FEATURES, FEATURES) == pytest.approx(1)
    assert cka(3 * FEATURES @ turn + 5, OTHER) == pytest.approx(cka(FEATURES, OTHER))
    assert cka(FEATURES, OTHER) == pytest.approx(cka(OTHER, FEATURES))
    assert cka(np.ones((40, 2)), OTHER) == 0


def test_parc_of_the_labels_themselves_and_of_changed_columns() -> None:
    assert parc(one_hot(LABELS), LABELS) == pytest.approx(100)
    order, names = DRAW.permutation(40), np.array([2, 0, 3, 1])
    found = parc(FEATURES, LABELS)
    assert parc(FEATURES[order], names[LABELS[order]]) == pytest.approx(found)
    assert parc(FEATURES * [2, 3, 4, 5, 6, 7] - 1, LABELS) == pytest.approx(found)


def test_rsa_and_dds_of_equal_features() -> None:
    for score in (rsa, dds):
        assert score(FEATURES, FEATURES) == pytest.approx(100)
        assert score(FEATURES * 7 + 1, OTHER) == pytest.approx(score(FEATURES, OTHER))
        assert abs(score(FEATURES, OTHER)) < 40


def test_classifiers_by_their_neighbours_and_by_a_line() -> None:
    near = one_hot(LABELS) + 0.01 * DRAW.normal(size=(40, 4))
    assert neighbour(near, LABELS) == logistic(near, LABELS) == 1
    assert neighbour(FEATURES, LABELS) < 0.6
    with pytest.raises(ValueError, match="single sample"):
        logistic(FEATURES[:3], np.array([0, 0, 1]))

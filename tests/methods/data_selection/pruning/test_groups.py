"""Scores of groups, and the choice by them, on numbers that can be checked by hand and on real digits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from transfer_run.methods.data_selection.pruning.groups import (
    best,
    centroids,
    class_closeness,
    feature_mapping,
    kept_number,
    label_mapping,
    nearest,
)


def test_label_mapping_counts_and_ties() -> None:
    logits = np.zeros((6, 5))
    logits[np.arange(6), [2, 2, 0, 2, 4, 0]] = 1
    counts = label_mapping(logits)
    assert counts.tolist() == [2, 0, 3, 0, 1]
    assert best(counts, 2).tolist() == [2, 0]
    assert best(counts, 4).tolist() == [2, 0, 4, 1]  # 1 and 3 tie at zero
    assert best(counts, 2, reverse=True).tolist() == [1, 3]


@pytest.mark.parametrize("reverse", [False, True])
def test_kept_sets_are_nested(reverse: bool) -> None:
    counts = np.random.default_rng(0).integers(0, 4, 50)
    sets = [set(best(counts, kept_number(50, ratio, None), reverse=reverse)) for ratio in np.arange(0, 1, 0.1)]
    assert len(sets[0]) == 50
    for larger, smaller in pairwise(sets):
        assert smaller < larger


def test_the_kept_number_rounds_and_is_never_zero() -> None:
    assert kept_number(1000, 0.6, None) == 400
    assert kept_number(5, 0.5, None) == 3
    assert kept_number(10, 0.7, None) == 3
    assert kept_number(5, 0.99, None) == 1
    assert kept_number(5, 0.6, 4) == 4
    assert kept_number(5, 0.6, 9) == 5


def test_feature_mapping_on_one_hot_centres_is_label_mapping() -> None:
    rng = np.random.default_rng(1)
    logits = np.eye(7)[rng.integers(0, 7, 200)]
    assert_array_equal(feature_mapping(logits, np.eye(7)), label_mapping(logits))


def test_feature_mapping_ignores_a_common_rotation_and_shift() -> None:
    rng = np.random.default_rng(2)
    source, groups, target = rng.normal(size=(300, 8)), rng.integers(0, 6, 300), rng.normal(size=(100, 8))
    turn, shift = np.linalg.qr(rng.normal(size=(8, 8)))[0], rng.normal(size=8) * 10
    before = feature_mapping(target, centroids(source, groups, 6))
    after = feature_mapping(target @ turn + shift, centroids(source @ turn + shift, groups, 6))
    assert_array_equal(before, after)
    assert before.sum() == 100


def test_centroids_and_the_nearest_one_by_the_definition() -> None:
    rng = np.random.default_rng(3)
    source, groups = rng.normal(size=(50, 4)), rng.integers(0, 5, 50)
    groups[groups == 3] = -1  # group 3 is empty, its rows are in no group
    centres = centroids(source, groups, 5)
    assert np.isnan(centres[3]).all()
    assert_allclose(centres[1], source[groups == 1].mean(0))
    distance = np.linalg.norm(source[:, None] - np.nan_to_num(centres, nan=1e9), axis=2)
    assert_array_equal(nearest(source, centres, chunk=7), distance.argmin(1))
    assert feature_mapping(source, centres)[3] == 0


def test_class_means_prefer_the_closest_class() -> None:
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [np.nan, np.nan], [1.0, 1.0]])
    scores = class_closeness(centres, np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert_allclose(scores[0], -1)
    assert_allclose(scores[3], -1)
    assert scores[2] == -np.inf
    assert best(scores, 2).tolist() == [0, 3]


def test_threes_and_sevens_are_found_among_the_digits() -> None:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = pixels[order] / 16, labels[order]
    source, classes = pixels[:1000], labels[:1000]
    held_out = np.isin(labels[1000:], [3, 7])
    noise = np.random.default_rng(0).normal(scale=0.05, size=(held_out.sum(), 64))
    target = pixels[1000:][held_out] + noise
    by_features = feature_mapping(target, centroids(source, classes, 10))
    by_labels = label_mapping(LogisticRegression(max_iter=2000).fit(source, classes).decision_function(target))
    for counts in (by_features, by_labels):
        assert set(best(counts, 2)) == {3, 7}
        assert counts.sum() == len(target)
    assert_allclose(by_features, [0, 0, 0, 65, 0, 2, 0, 71, 5, 1], atol=2)
    assert_allclose(by_labels, [0, 0, 0, 69, 0, 1, 0, 70, 4, 0], atol=2)
    order = np.random.default_rng(1).permutation(len(target))
    assert_array_equal(feature_mapping(target[order], centroids(source, classes, 10)), by_features)

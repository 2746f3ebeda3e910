"""The scores' own properties, numbered as the Checks of their note; the oracle test has the official numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import digamma
from scipy.stats import multivariate_normal, ortho_group
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from transfer_run.methods.transfer_scores.class_entropy import class_entropies, kth_distances, tmi
from transfer_run.methods.transfer_scores.classes import balanced, one_hot, without_empty_directions
from transfer_run.methods.transfer_scores.gbc import gbc, reduced
from transfer_run.methods.transfer_scores.hscore import hscore, hscore_reg, shrinkage
from transfer_run.methods.transfer_scores.leep import leep, nce
from transfer_run.methods.transfer_scores.lfc import lfc
from transfer_run.methods.transfer_scores.logme import evidence, logme, logme_regression
from transfer_run.methods.transfer_scores.parc import parc
from transfer_run.methods.transfer_scores.transrate import coding_rate, transrate

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


def classes(seed: int, samples: int = 60, width: int = 5, count: int = 3, apart: float = 3.0) -> tuple[Any, Any]:
    """Gaussian features (samples, width) around random means, and labels of which every class has at least four."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(count), 4), rng.integers(0, count, samples - 4 * count)])
    features = apart * rng.normal(size=(count, width))[labels] + 2 * rng.normal(size=(samples, width))
    return features, rng.permutation(labels) if apart == 0 else labels


# ---- TMI: checks 1 to 4
def test_tmi_of_four_points_on_a_line() -> None:
    points, labels = np.array([[0.0], [10.0], [20.0], [30.0]]), np.zeros(4, dtype=int)
    assert_allclose(tmi(points, labels, k=1), 11 / 6 + np.log(20), rtol=1e-12)


@few
@given(seeds, st.integers(1, 3))
def test_floored_distances_leave_only_width_and_counts(seed: int, k: int) -> None:
    features, labels = classes(seed)
    found = class_entropies(features * 1e-3, labels, k=k)
    expected = digamma(found.counts) - digamma(k) + features.shape[1] * np.log(2)
    assert_allclose(found.entropies, expected, rtol=1e-12)
    assert found.floored == 1.0


@few
@given(seeds, st.floats(1.0, 50.0))
def test_scaling_adds_the_log_of_the_scale_in_every_dimension(seed: int, scale: float) -> None:
    features, labels = classes(seed)
    features *= 1e6  # no distance is near the floor
    before, after = class_entropies(features, labels), class_entropies(features * scale, labels)
    assert before.floored == 0.0
    assert_allclose(after.entropies - before.entropies, features.shape[1] * np.log(scale), atol=1e-9)


@few
@given(seeds)
def test_tmi_is_blind_to_place_order_and_names_but_not_to_rotation(seed: int) -> None:
    features, labels = classes(seed)
    rng, score = np.random.default_rng(seed), tmi(features, labels)
    rows, columns, names = rng.permutation(len(labels)), rng.permutation(features.shape[1]), rng.permutation(3)
    assert_allclose(tmi(features + rng.normal(size=features.shape[1]) * 10, labels), score, rtol=1e-9)
    assert_allclose(tmi(features[rows], labels[rows]), score, rtol=1e-12)
    assert_allclose(tmi(features[:, columns], labels), score, rtol=1e-12)
    assert_allclose(tmi(features, names[labels]), score, rtol=1e-12)
    turn = ortho_group.rvs(features.shape[1], random_state=seed)
    assert abs(tmi(features @ turn, labels) - score) > 1e-6
    assert_allclose(tmi(features @ turn, labels, norm="euclidean"), tmi(features, labels, norm="euclidean"), rtol=1e-9)


def test_small_and_absent_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 20 + [1] + [2] * 2 + [4] * 10 + [5] * 3)  # one sample, two, none of class 3, ..., three
    features = 10 * rng.normal(size=(len(labels), 3))
    found = class_entropies(features, labels, k=3)
    assert np.isinf(found.entropies[[2, 5]]).all()
    assert found.entropies[1] == found.entropies[3] == 0.0
    kept = (20 * found.entropies[0] + 10 * found.entropies[4]) / len(labels)
    assert_allclose(tmi(features, labels), kept / 4, rtol=1e-12)
    assert_allclose(tmi(features, labels, divide_by_classes=False), kept, rtol=1e-12)


def test_a_gaussian_class_has_its_known_entropy() -> None:
    rows, labels = 10 * np.random.default_rng(0).normal(size=(4000, 2)), np.zeros(4000, dtype=int)
    expected = np.log(2 * np.pi * np.e * 100)
    found = class_entropies(rows, labels, min_distance=1e-9).entropies[0]
    euclidean = class_entropies(rows, labels, norm="euclidean", min_distance=1e-9).entropies[0]
    assert_allclose(found, expected, rtol=0.01)
    # the released code keeps the diameter 2 eps in the Euclidean form too, so that one lies D log 2 higher
    assert_allclose(euclidean, expected + 2 * np.log(2), rtol=0.01)


def test_distances_go_over_the_whole_class_and_count_duplicates() -> None:
    rows = np.random.default_rng(1).normal(size=(2500, 2))  # more than one portion
    rows[7] = rows[2100]
    near = kth_distances(rows, 1, "max")
    assert near[7] == near[2100] == 0.0
    apart = np.abs(rows[1500] - rows).max(1)
    assert near[1500] == np.sort(apart)[1]


# ---- LogME: check 5
@few
@given(seeds, st.sampled_from([(60, 5), (20, 40)]))
def test_evidence_is_the_marginal_likelihood(seed: int, size: tuple[int, int]) -> None:
    features, labels = classes(seed, *size)
    targets = one_hot(labels)
    found = evidence(features, targets)
    for target, value, alpha, beta in zip(targets.T, found.values, found.alphas, found.betas, strict=True):
        covariance = np.eye(len(target)) / beta + features @ features.T / alpha
        density = multivariate_normal(np.zeros(len(target)), covariance).logpdf(target) / len(target)
        # its fixed point is left where alpha / beta moves by less than a thousandth
        assert_allclose(value, density, rtol=1e-3, atol=3e-3)


def test_evidence_prefers_features_that_explain_the_target() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 6))
    target = features @ rng.normal(size=6) + 0.1 * rng.normal(size=200)
    assert logme_regression(features, target) > logme_regression(rng.normal(size=(200, 6)), target) + 1
    assert_allclose(evidence(features, target[:, None]).betas, 100, rtol=0.3)  # the noise's precision


# ---- LEEP and NCE: check 6
@few
@given(seeds)
def test_leep_of_certain_answers_is_nce(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, source = rng.integers(0, 4, 50), rng.integers(0, 6, 50)
    assert_allclose(leep(np.eye(6)[source], labels), nce(source, labels), rtol=1e-12)


@few
@given(seeds)
def test_leep_and_nce_of_a_source_class_that_tells_all(seed: int) -> None:
    source = np.random.default_rng(seed).integers(0, 6, 50)
    labels = np.array([2, 0, 1, 1, 2, 0])[source]
    assert_allclose([leep(np.eye(6)[source], labels), nce(source, labels)], 0, atol=1e-12)


@few
@given(seeds)
def test_leep_of_an_answer_that_never_changes_is_the_label_entropy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 50)
    share = np.bincount(labels)[np.bincount(labels) > 0] / 50
    constant = np.tile(rng.dirichlet(np.ones(5)), (50, 1))
    assert_allclose(leep(constant, labels), (share * np.log(share)).sum(), rtol=1e-12)


# ---- H-score: check 7
@few
@given(seeds)
def test_hscore_is_blind_to_affine_maps(seed: int) -> None:
    features, labels = classes(seed)
    rng = np.random.default_rng(seed)
    mixed = features @ (ortho_group.rvs(5, random_state=seed) * rng.uniform(0.5, 2, 5)) + rng.normal(size=5)
    assert_allclose(hscore(mixed, labels), hscore(features, labels), rtol=1e-9)


@pytest.mark.parametrize(("width", "count"), [(2, 5), (8, 5)])
def test_hscore_of_class_means_is_their_rank(width: int, count: int) -> None:
    _, labels = classes(0, 80, width, count)
    means = np.random.default_rng(0).normal(size=(count, width))
    assert_allclose(hscore(means[labels], labels), min(count - 1, width), rtol=1e-9)


def test_hscore_saturates_without_enough_samples() -> None:
    features, labels = classes(0, 20, 40, 3, apart=0)
    assert_allclose(hscore(features, labels), 2, rtol=1e-9)
    assert hscore_reg(features, labels) < 1


@pytest.mark.parametrize("size", [(60, 5), (20, 40)])
def test_regularised_hscore_is_its_definition(size: tuple[int, int]) -> None:
    features, labels = classes(0, *size)
    fit = LedoitWolf().fit(features)
    target = one_hot(labels)
    means = target @ (target.T @ features / target.sum(0)[:, None])
    expected = np.trace(np.linalg.inv(fit.covariance_) @ ((1 - fit.shrinkage_) * np.cov(means.T)))
    assert_allclose(hscore_reg(features, labels), expected, rtol=1e-9)
    centred = features - features.mean(0)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2 / len(features)
    assert_allclose(shrinkage(centred, spectrum), fit.shrinkage_, rtol=1e-9)


# ---- GBC, TransRate, PARC, LFC: check 8
@pytest.mark.parametrize("kind", ["spherical", "diagonal"])
def test_gbc_of_equal_and_of_distant_classes(kind: Any) -> None:
    rows, count = np.random.default_rng(0).normal(size=(10, 4)), 3
    features, labels = np.tile(rows, (count, 1)), np.repeat(np.arange(count), 10)
    assert_allclose(gbc(features, labels, kind=kind), -count * (count - 1), rtol=1e-9)
    assert_allclose(gbc(features + 100.0 * labels[:, None], labels, kind=kind), 0, atol=1e-9)


def test_gbc_looks_at_the_first_components_alone() -> None:
    features, labels = classes(0, 100, 20, 4)
    assert reduced(features, 6).shape == (100, 6)
    assert_allclose(gbc(features, labels, pca=6), gbc(reduced(features, 6), labels, pca=None), rtol=1e-12)
    assert_allclose(gbc(features, labels, pca=64), gbc(features, labels, pca=None), rtol=1e-9)  # only a rotation


def test_transrate_of_one_class_is_zero() -> None:
    features, _ = classes(0)
    assert_allclose(transrate(features, np.zeros(len(features), dtype=int)), 0, atol=1e-9)


@pytest.mark.parametrize("size", [(60, 5), (5, 60)])
def test_coding_rate_takes_the_smaller_gram_matrix(size: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=size)
    expected = np.log(np.linalg.svd(rows, compute_uv=False) ** 2 / (size[0] * 1e-4) + 1).sum() / 2
    assert_allclose(coding_rate(rows), expected, rtol=1e-9)


@pytest.mark.parametrize("count", [2, 5])
def test_parc_of_one_hot_features_is_complete(count: int) -> None:
    labels = np.tile(np.arange(count), 8)
    assert_allclose(parc(one_hot(labels), labels), 100, rtol=1e-12)


def test_parc_of_features_without_a_word_on_the_labels() -> None:
    features, labels = classes(0, 300, 6, 3, apart=0)
    assert abs(parc(features, labels)) < 3
    assert parc(np.ones((10, 4)), np.arange(10) % 2) == 0.0


@few
@given(seeds, st.sampled_from([(40, 4), (12, 30)]))
def test_lfc_is_the_cosine_of_the_full_matrices(seed: int, size: tuple[int, int]) -> None:
    features, labels = classes(seed, *size)
    alike, same = features @ features.T, np.where(labels[:, None] == labels, 1.0, -1.0)
    alike, same = alike - alike.mean(), same - same.mean()
    inner = (alike * same).sum()
    for norm, order in (("fro", "fro"), ("spectral", 2)):
        lengths = np.linalg.norm(alike, order) * np.linalg.norm(same, order)  # type: ignore[call-overload]
        assert_allclose(lfc(features, labels, norm=norm), inner / lengths, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


def test_lfc_of_one_hot_features_is_one() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 50)
    assert_allclose(lfc(3 * one_hot(labels), labels), 1, rtol=1e-12)


# ---- real images: check 9
def test_digits_and_shuffled_digits() -> None:
    features, labels = load_digits(return_X_y=True)
    shuffled = np.random.default_rng(0).permutation(labels)
    for score, clean, chance, slack in (
        (tmi, 18.020, 20.1, 0.1),
        (logme, 0.27028, -0.22, 0.01),
        (hscore, 5.9179, 0.29, 0.05),
        (hscore_reg, 5.8514, 0.24, 0.05),
        (lfc, 0.31205, 0.003, 0.003),
    ):
        assert_allclose(score(features, labels), clean, rtol=5e-5)
        assert_allclose(score(features, shuffled), chance, atol=slack)


@pytest.mark.parametrize("size", [(20, 40), (40, 20)])
def test_narrowing_keeps_inner_products_and_the_evidence(size: tuple[int, int]) -> None:
    features, labels = classes(0, *size)
    turned = without_empty_directions(features)
    assert turned.shape == (size[0], min(size))
    assert_allclose(turned @ turned.T, features @ features.T, rtol=1e-9, atol=1e-9)
    assert_allclose(logme(features, labels), evidence(features, one_hot(labels)).values.mean(), rtol=1e-9)
    unturned = PCA(5, svd_solver="full").fit_transform(features)
    assert_allclose(np.abs(reduced(features, 5)), np.abs(unturned), rtol=1e-6, atol=1e-9)  # signs are arbitrary


def test_balanced_subset() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2] * 10)
    kept = balanced(labels, 8)
    assert np.bincount(labels[kept]).tolist() == [3, 2, 3]
    assert balanced(labels, 100).tolist() == list(range(22))

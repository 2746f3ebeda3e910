"""The scores against the numbers of the official implementations (see the files' own inputs).

TMI: snudatalab/TMI. LogME, LEEP, NCE: thuml/LogME. H-scores, TransRate: thuml/Transfer-Learning-Library. The others:
independent numpy implementations of the published definitions.
"""

from __future__ import annotations

from typing import Any

import pytest
from numpy.testing import assert_allclose

from transfer_run.methods.transfer_scores.class_entropy import class_entropies, tmi
from transfer_run.methods.transfer_scores.classes import one_hot
from transfer_run.methods.transfer_scores.gbc import gbc
from transfer_run.methods.transfer_scores.hscore import hscore, hscore_reg
from transfer_run.methods.transfer_scores.leep import leep, nce
from transfer_run.methods.transfer_scores.lfc import lfc
from transfer_run.methods.transfer_scores.logme import evidence, logme, logme_regression
from transfer_run.methods.transfer_scores.parc import parc
from transfer_run.methods.transfer_scores.transrate import transrate
from transfer_run.methods.transferability.ranking.ranking import agreement

ORACLE = "transferability_*.npz"
EXACT, WIDE = 1e-8, 1e-6


def test_tmi(arrays: dict[str, Any]) -> None:
    features, labels = arrays["features"], arrays["labels"]
    assert_allclose(tmi(features, labels, k=3), arrays["tmi_k3"], rtol=EXACT)
    assert_allclose(tmi(features, labels, k=1), arrays["tmi_k1"], rtol=EXACT)
    assert_allclose(tmi(features, labels, k=3, divide_by_classes=False), arrays["tmi_k3_paper"], rtol=EXACT)
    found = class_entropies(features, labels, k=3)
    assert_allclose(found.entropies, arrays["tmi_k3_class_entropies"], rtol=EXACT)


def test_tmi_below_its_floor(arrays: dict[str, Any]) -> None:
    features = arrays["features"] * 0.01
    assert_allclose(tmi(features, arrays["labels"]), arrays["tmi_k3_small"], rtol=EXACT)
    assert class_entropies(features, arrays["labels"]).floored == 1.0


def test_tmi_of_small_and_absent_classes(arrays: dict[str, Any]) -> None:
    assert_allclose(tmi(arrays["edge_features"], arrays["edge_labels"]), arrays["edge_tmi_k3"], rtol=EXACT)


@pytest.mark.parametrize("variant", ["fixed_point", "icml"])
def test_logme(arrays: dict[str, Any], variant: Any) -> None:
    features, labels = arrays["features"], arrays["labels"]
    assert_allclose(logme(features, labels, variant=variant), arrays[f"logme_{variant}"], rtol=EXACT)
    found = evidence(features, one_hot(labels), variant=variant)
    assert_allclose(found.alphas, arrays[f"logme_{variant}_alphas"], rtol=1e-5)
    assert_allclose(found.betas, arrays[f"logme_{variant}_betas"], rtol=1e-5)
    if variant == "fixed_point":
        assert_allclose(found.weights, arrays["logme_weights"], rtol=1e-5, atol=1e-9)


def test_logme_of_a_regression(arrays: dict[str, Any]) -> None:
    found = logme_regression(arrays["features"], arrays["reg_targets"])
    assert_allclose(found, arrays["logme_regression"], rtol=EXACT)


def test_logme_of_fewer_samples_than_dimensions(arrays: dict[str, Any]) -> None:
    features, labels = arrays["wide_features"], arrays["wide_labels"]
    released = logme(features, labels, full_rank_term=False)
    assert_allclose(logme(features, labels), arrays["wide_logme_fixed_point_corrected"], rtol=WIDE)
    assert_allclose(released, arrays["wide_logme_fixed_point"], rtol=WIDE)
    assert_allclose(logme(features, labels, variant="icml"), arrays["wide_logme_icml"], rtol=WIDE)


def test_source_scores(arrays: dict[str, Any]) -> None:
    assert_allclose(leep(arrays["source_probs"], arrays["labels"]), arrays["leep"], rtol=EXACT)
    assert_allclose(nce(arrays["source_labels"], arrays["labels"]), arrays["nce"], rtol=EXACT)


@pytest.mark.parametrize(("prefix", "tolerance"), [("", EXACT), ("wide_", WIDE)])
def test_hscores(arrays: dict[str, Any], prefix: str, tolerance: float) -> None:
    features, labels = arrays[f"{prefix}features"], arrays["wide_labels" if prefix else "labels"]
    assert_allclose(hscore(features, labels), arrays[f"{prefix}hscore"], rtol=tolerance)
    assert_allclose(hscore_reg(features, labels), arrays[f"{prefix}hscore_reg"], rtol=tolerance)


def test_gbc(arrays: dict[str, Any]) -> None:
    features, labels = arrays["features"], arrays["labels"]
    assert_allclose(gbc(features, labels, kind="diagonal", pca=None), arrays["gbc_diagonal"], rtol=EXACT)
    assert_allclose(gbc(features, labels, pca=None), arrays["gbc_spherical"], rtol=EXACT)
    released = gbc(features, labels, pca=None, logdet_times_dim=False)
    assert_allclose(released, arrays["gbc_spherical_official"], rtol=EXACT)


def test_transrate(arrays: dict[str, Any]) -> None:
    features, labels = arrays["features"], arrays["labels"]
    assert_allclose(transrate(features, labels), arrays["transrate"], rtol=EXACT)
    assert_allclose(transrate(features, labels, weighted=True), arrays["transrate_weighted"], rtol=EXACT)


def test_parc(arrays: dict[str, Any]) -> None:
    assert_allclose(parc(arrays["features"], arrays["labels"]), arrays["parc_exact_labels"], rtol=EXACT)


def test_lfc(arrays: dict[str, Any]) -> None:
    features, labels = arrays["features"], arrays["labels"]
    assert_allclose(lfc(features, labels), arrays["lfc_fro"], rtol=EXACT)
    assert_allclose(lfc(features, labels, norm="spectral"), arrays["lfc_spectral"], rtol=EXACT)


def test_weighted_tau(arrays: dict[str, Any]) -> None:
    scores = {str(i): float(v) for i, v in enumerate(arrays["rank_scores"])}
    accuracies = {str(i): float(v) for i, v in enumerate(arrays["rank_accuracies"])}
    found = agreement(scores, accuracies)
    assert found is not None
    assert_allclose(found["weighted_tau"], arrays["rank_weighted_tau"], rtol=EXACT)
    assert found["candidates"] == len(scores)

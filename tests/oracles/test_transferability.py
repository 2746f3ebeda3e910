"""The scores against the numbers of the official implementations (see the files' own inputs).

TMI: snudatalab/TMI. LogME, LEEP, NCE: thuml/LogME. H-scores, TransRate: thuml/Transfer-Learning-Library. The others:
independent numpy implementations of the published definitions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transfer_run.methods.transferability.ranking.ranking import agreement
from transfer_run.methods.transferability.scores.class_entropy import class_entropies, tmi
from transfer_run.methods.transferability.scores.classes import one_hot
from transfer_run.methods.transferability.scores.gbc import gbc
from transfer_run.methods.transferability.scores.hscore import hscore, hscore_reg
from transfer_run.methods.transferability.scores.leep import leep, nce
from transfer_run.methods.transferability.scores.lfc import lfc
from transfer_run.methods.transferability.scores.logme import evidence, logme, logme_regression
from transfer_run.methods.transferability.scores.parc import parc
from transfer_run.methods.transferability.scores.transrate import transrate

FOLDER = Path(os.environ.get("TRANSFER_RUN_ORACLES", Path(__file__).parent / "data"))
FILES = sorted(FOLDER.glob("transferability_*.npz"))
EXACT, WIDE = 1e-8, 1e-6


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def oracle(request: pytest.FixtureRequest) -> dict[str, Any]:
    with np.load(request.param) as file:
        return dict(file)


def test_an_oracle_is_there() -> None:
    assert FILES, f"no transferability_*.npz in {FOLDER}"


def test_tmi(oracle: dict[str, Any]) -> None:
    features, labels = oracle["features"], oracle["labels"]
    assert_allclose(tmi(features, labels, k=3), oracle["tmi_k3"], rtol=EXACT)
    assert_allclose(tmi(features, labels, k=1), oracle["tmi_k1"], rtol=EXACT)
    assert_allclose(tmi(features, labels, k=3, divide_by_classes=False), oracle["tmi_k3_paper"], rtol=EXACT)
    found = class_entropies(features, labels, k=3)
    assert_allclose(found.entropies, oracle["tmi_k3_class_entropies"], rtol=EXACT)


def test_tmi_below_its_floor(oracle: dict[str, Any]) -> None:
    features = oracle["features"] * 0.01
    assert_allclose(tmi(features, oracle["labels"]), oracle["tmi_k3_small"], rtol=EXACT)
    assert class_entropies(features, oracle["labels"]).floored == 1.0


def test_tmi_of_small_and_absent_classes(oracle: dict[str, Any]) -> None:
    assert_allclose(tmi(oracle["edge_features"], oracle["edge_labels"]), oracle["edge_tmi_k3"], rtol=EXACT)


@pytest.mark.parametrize("variant", ["fixed_point", "icml"])
def test_logme(oracle: dict[str, Any], variant: Any) -> None:
    features, labels = oracle["features"], oracle["labels"]
    assert_allclose(logme(features, labels, variant=variant), oracle[f"logme_{variant}"], rtol=EXACT)
    found = evidence(features, one_hot(labels), variant=variant)
    assert_allclose(found.alphas, oracle[f"logme_{variant}_alphas"], rtol=1e-5)
    assert_allclose(found.betas, oracle[f"logme_{variant}_betas"], rtol=1e-5)
    if variant == "fixed_point":
        assert_allclose(found.weights, oracle["logme_weights"], rtol=1e-5, atol=1e-9)


def test_logme_of_a_regression(oracle: dict[str, Any]) -> None:
    found = logme_regression(oracle["features"], oracle["reg_targets"])
    assert_allclose(found, oracle["logme_regression"], rtol=EXACT)


def test_logme_of_fewer_samples_than_dimensions(oracle: dict[str, Any]) -> None:
    features, labels = oracle["wide_features"], oracle["wide_labels"]
    released = logme(features, labels, full_rank_term=False)
    assert_allclose(logme(features, labels), oracle["wide_logme_fixed_point_corrected"], rtol=WIDE)
    assert_allclose(released, oracle["wide_logme_fixed_point"], rtol=WIDE)
    assert_allclose(logme(features, labels, variant="icml"), oracle["wide_logme_icml"], rtol=WIDE)


def test_source_scores(oracle: dict[str, Any]) -> None:
    assert_allclose(leep(oracle["source_probs"], oracle["labels"]), oracle["leep"], rtol=EXACT)
    assert_allclose(nce(oracle["source_labels"], oracle["labels"]), oracle["nce"], rtol=EXACT)


@pytest.mark.parametrize(("prefix", "tolerance"), [("", EXACT), ("wide_", WIDE)])
def test_hscores(oracle: dict[str, Any], prefix: str, tolerance: float) -> None:
    features, labels = oracle[f"{prefix}features"], oracle["wide_labels" if prefix else "labels"]
    assert_allclose(hscore(features, labels), oracle[f"{prefix}hscore"], rtol=tolerance)
    assert_allclose(hscore_reg(features, labels), oracle[f"{prefix}hscore_reg"], rtol=tolerance)


def test_gbc(oracle: dict[str, Any]) -> None:
    features, labels = oracle["features"], oracle["labels"]
    assert_allclose(gbc(features, labels, kind="diagonal", pca=None), oracle["gbc_diagonal"], rtol=EXACT)
    assert_allclose(gbc(features, labels, pca=None), oracle["gbc_spherical"], rtol=EXACT)
    released = gbc(features, labels, pca=None, logdet_times_dim=False)
    assert_allclose(released, oracle["gbc_spherical_official"], rtol=EXACT)


def test_transrate(oracle: dict[str, Any]) -> None:
    features, labels = oracle["features"], oracle["labels"]
    assert_allclose(transrate(features, labels), oracle["transrate"], rtol=EXACT)
    assert_allclose(transrate(features, labels, weighted=True), oracle["transrate_weighted"], rtol=EXACT)


def test_parc(oracle: dict[str, Any]) -> None:
    assert_allclose(parc(oracle["features"], oracle["labels"]), oracle["parc_exact_labels"], rtol=EXACT)


def test_lfc(oracle: dict[str, Any]) -> None:
    features, labels = oracle["features"], oracle["labels"]
    assert_allclose(lfc(features, labels), oracle["lfc_fro"], rtol=EXACT)
    assert_allclose(lfc(features, labels, norm="spectral"), oracle["lfc_spectral"], rtol=EXACT)


def test_weighted_tau(oracle: dict[str, Any]) -> None:
    scores = {str(i): float(v) for i, v in enumerate(oracle["rank_scores"])}
    accuracies = {str(i): float(v) for i, v in enumerate(oracle["rank_accuracies"])}
    found = agreement(scores, accuracies)
    assert found is not None
    assert_allclose(found["weighted_tau"], oracle["rank_weighted_tau"], rtol=EXACT)
    assert found["candidates"] == len(scores)

"""Weights of a zoo, and which rows keep their labels."""

from __future__ import annotations

import numpy as np
import pytest

from transfer_run.errors import UserError
from transfer_run.methods.distillation.zoo.similarity import METRICS, Probe, similarity, stratified, weights

RHO = [0.2, 0.5, 0.4]


def test_weights_by_their_power() -> None:
    assert weights(RHO, nearest=False, power=0).tolist() == [1 / 3] * 3
    assert weights(RHO, nearest=False, power=60) == pytest.approx([0, 1, 0], abs=1e-5)
    for power in (1, 3, 9):
        found = weights(RHO, nearest=False, power=power)
        assert found.sum() == pytest.approx(1)
        assert found == pytest.approx([rho**power / sum(r**power for r in RHO) for rho in RHO])
        assert weights([100 * rho for rho in RHO], nearest=False, power=power) == pytest.approx(found)
    assert weights(RHO, nearest=True, power=1).tolist() == [0, 1, 0]
    assert weights([-1.0, 0.5, 0.5], nearest=False, power=2) == pytest.approx([0, 0.5, 0.5])
    assert weights([0.3], nearest=False, power=7).tolist() == weights([0.3], nearest=True, power=7).tolist() == [1]


def test_nothing_alike() -> None:
    with pytest.raises(UserError, match="No source is alike"):
        weights([-0.2, 0.0], nearest=False, power=2)
    assert weights([-0.2, -0.1], nearest=True, power=2).tolist() == [0, 1]


def test_the_share_of_every_class_keeps_its_labels() -> None:
    labels = np.array([0] * 40 + [1] * 10 + [2] * 2 + [-100] * 5)
    kept = stratified(labels, 0.2, seed=0)
    assert [int(kept[labels == c].sum()) for c in (0, 1, 2, -100)] == [8, 2, 1, 0]
    assert np.array_equal(kept, stratified(labels, 0.2, seed=0))
    assert not np.array_equal(kept, stratified(labels, 0.2, seed=1))
    assert stratified(labels, 1.0, seed=3).sum() == 52


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_prefers_features_that_tell_the_classes_apart(metric: str) -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    noise = draw.normal(size=(60, 8))
    good = noise + 4 * np.eye(8)[labels]
    probabilities = [np.exp(x[:, :3]) / np.exp(x[:, :3]).sum(1, keepdims=True) for x in (good, noise)]
    known = good + draw.normal(size=good.shape) if metric == "rsa" else None
    found = [
        similarity(metric, Probe(x, p, labels, known), 4) for x, p in zip((good, noise), probabilities, strict=True)
    ]
    assert found[0] > found[1] + 0.05


def test_one_class_tells_nothing() -> None:
    with pytest.raises(UserError, match="of one class"):
        similarity("parc", Probe(np.eye(3), np.eye(3), np.zeros(3, dtype=np.int64)), None)

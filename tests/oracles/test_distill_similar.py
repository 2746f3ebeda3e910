"""Similarities of sources, their weights and the weighted loss: PARC's authors' code, and NumPy on real digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from transfer_run.methods.distillation.distill_similar import soft_cross_entropy
from transfer_run.methods.distillation.zoo.similarity import weights
from transfer_run.methods.transfer_scores.alike import cka, dds, rsa
from transfer_run.methods.transfer_scores.parc import parc

ORACLE = "distill_similar_*.npz"
EXACT = 1e-8


def test_similarities(arrays: dict[str, Any]) -> None:
    features, reference, labels = arrays["source_features"], arrays["reference_features"], arrays["labels"]
    for source, given in enumerate(features):
        assert parc(given, labels, ties=False) == pytest.approx(arrays["parc_x100"][source], rel=EXACT)
        assert rsa(given, reference) == pytest.approx(arrays["rsa_x100"][source], rel=EXACT)
        assert dds(given, reference) == pytest.approx(arrays["dds_x100"][source], rel=EXACT)
        assert cka(given, reference) == pytest.approx(arrays["linear_cka"][source], rel=EXACT)


def test_weights(arrays: dict[str, Any]) -> None:
    found = [name for name in arrays if name.startswith("weights_p")]
    assert len(found) > 2
    for name in found:
        power = float(name.removeprefix("weights_p"))
        assert weights(arrays["similarity"], nearest=False, power=power) == pytest.approx(arrays[name], rel=EXACT)


def test_losses(arrays: dict[str, Any]) -> None:
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(arrays[name]))

    count = len(arrays["similarity"])
    each = [
        soft_cross_entropy(tensor(f"source{s}_logits").softmax(-1), tensor(f"student_head{s}_logits"))
        for s in range(count)
    ]
    assert [float(value) for value in each] == pytest.approx(arrays["loss_distill_each"].tolist(), rel=EXACT)
    labelled = F.cross_entropy(tensor("target_logits_labelled"), tensor("target_labels"))
    assert float(labelled) == pytest.approx(float(arrays["loss_labelled"]), rel=EXACT)
    share = float(arrays["lambda"])
    for name, alpha in (
        ("loss_weighted_p3", weights(arrays["similarity"], nearest=False, power=3)),
        ("loss_nearest", weights(arrays["similarity"], nearest=True, power=3)),
    ):
        total = share * labelled + (1 - share) * sum(float(a) * value for a, value in zip(alpha, each, strict=True))
        assert float(total) == pytest.approx(float(arrays[name]), rel=EXACT)

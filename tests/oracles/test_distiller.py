"""Distiller's losses against a public toolkit's loss file and a double loop over MI-alpha's definition."""

from __future__ import annotations

import math

import pytest
from torch import Tensor

from transfer_run.methods.distillation.objectives.information import mi_bound
from transfer_run.methods.distillation.objectives.objectives import HIDDEN, prediction_ce, prediction_mse

ORACLE = "distiller_*.npz"
EXACT = 1e-10


@pytest.mark.parametrize("loss", ["mse", "cos", "pkd"])
def test_hidden_states(tensors: dict[str, Tensor], loss: str) -> None:
    found = HIDDEN[loss](tensors["hidden_student"], tensors["hidden_teacher"], tensors["mask"])
    assert float(found) == pytest.approx(float(tensors[f"hidden_{loss}"]), rel=EXACT)


def test_predictions(tensors: dict[str, Tensor]) -> None:
    given = tensors["logits_student"], tensors["logits_teacher"], float(tensors["temperature"])
    assert float(prediction_ce(*given)) == pytest.approx(float(tensors["pred_ce_T8_no_T2"]), rel=EXACT)
    assert float(prediction_mse(*given)) == pytest.approx(float(tensors["pred_mse_T8"]), rel=EXACT)


def test_mi_alpha(tensors: dict[str, Tensor]) -> None:
    scores, log_q = tensors["scores"], tensors["log_q"]
    for alpha, bound in zip(tensors["alphas"].tolist(), tensors["mi_bound"].tolist(), strict=True):
        found = float(mi_bound(scores, log_q, alpha))
        assert found == pytest.approx(bound, rel=EXACT), alpha
        if alpha == 1:
            assert found <= math.log(len(scores) - 1)

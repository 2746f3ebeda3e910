"""Distiller's losses against a public toolkit's loss file and a double loop over MI-alpha's definition."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer_run.methods.distillation.objectives.information import mi_bound
from transfer_run.methods.distillation.objectives.objectives import HIDDEN, prediction_ce, prediction_mse

FOLDER = Path(os.environ.get("TRANSFER_RUN_ORACLES", Path(__file__).parent / "data"))
FILES = sorted(FOLDER.glob("distiller_*.npz"))
EXACT = 1e-10


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def oracle(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    with np.load(request.param) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def test_an_oracle_is_there() -> None:
    assert FILES, f"no distiller_*.npz in {FOLDER}"


@pytest.mark.parametrize("loss", ["mse", "cos", "pkd"])
def test_hidden_states(oracle: dict[str, Tensor], loss: str) -> None:
    found = HIDDEN[loss](oracle["hidden_student"], oracle["hidden_teacher"], oracle["mask"])
    assert float(found) == pytest.approx(float(oracle[f"hidden_{loss}"]), rel=EXACT)


def test_predictions(oracle: dict[str, Tensor]) -> None:
    given = oracle["logits_student"], oracle["logits_teacher"], float(oracle["temperature"])
    assert float(prediction_ce(*given)) == pytest.approx(float(oracle["pred_ce_T8_no_T2"]), rel=EXACT)
    assert float(prediction_mse(*given)) == pytest.approx(float(oracle["pred_mse_T8"]), rel=EXACT)


def test_mi_alpha(oracle: dict[str, Tensor]) -> None:
    scores, log_q = oracle["scores"], oracle["log_q"]
    for alpha, bound in zip(oracle["alphas"].tolist(), oracle["mi_bound"].tolist(), strict=True):
        found = float(mi_bound(scores, log_q, alpha))
        assert found == pytest.approx(bound, rel=EXACT), alpha
        if alpha == 1:
            assert found <= math.log(len(scores) - 1)

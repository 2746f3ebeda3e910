"""Dynamic logits fusion against numbers computed from the published equations."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from transfer_run.methods.merging.fusion.search import Search, fuse, objective

ORACLE = "logits_fusion_*.npz"

Arrays = dict[str, np.ndarray]


def cases(arrays: Arrays) -> list[str]:
    found = sorted({match[1] for name in arrays if (match := re.match(r"(T\d+__s\d+__)", name))})
    assert found
    return found


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-8), (torch.float32, 1e-3)], ids=str)
def test_weights_and_fused_distribution(arrays: Arrays, dtype: torch.dtype, close: float) -> None:
    for case in cases(arrays):
        large, small, experts = (
            torch.from_numpy(arrays[case + name]).to(dtype) for name in ("large", "small", "experts")
        )
        search = Search.over(len(experts), arrays["alpha_grid"].tolist())
        losses = objective(large[None], small[None], experts[:, None], search)[0]
        atol = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(losses.view(len(experts), -1), arrays[case + "loss"], rtol=close, atol=atol)
        fused, weights = fuse(large[None], small[None], experts[:, None], search)
        np.testing.assert_allclose(weights[0], arrays[case + "alpha"], rtol=1e-6)
        np.testing.assert_allclose(fused[0].softmax(-1), arrays[case + "fused"], rtol=close, atol=atol)
        assert int(fused[0].argmax()) == int(arrays[case + "next"])

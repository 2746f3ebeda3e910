"""Fisher merging against numbers that the paper's own code produced: merges and Fisher estimates."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_run.methods.merging.engine.checkpoint import StateDict
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory
from transfer_run.methods.merging.fisher_merging import FisherRule, coefficient_candidates
from transfer_run.methods.merging.statistics.fisher_estimate import diagonal_fisher, exact

ORACLE = "fisher_merging_*.npz"
CLOSE = {"rtol": 1e-4, "atol": 2e-5}

Arrays = dict[str, np.ndarray]


def under(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)}


def models(arrays: Arrays, kind: str) -> list[StateDict]:
    count = len({match[1] for name in arrays if (match := re.match(kind + r"(\d+)__", name))})
    assert count
    return [StateDict(under(arrays, f"{kind}{i}__")) for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merges(arrays: Arrays, dtype: torch.dtype) -> None:
    seen = 0
    for prefix in sorted({name.rpartition("__")[0] for name in arrays}):
        match = re.fullmatch(r"(iso__c(\d+))|(fisher__c(\d+)__floor([\d.e-]+)__favor([01])__norm([01]))", prefix)
        if match is None:
            continue
        seen += 1
        coefficients = arrays[f"coeffs{match[2] or match[4]}"]
        if match[1]:
            rule = FisherRule(coefficients, None)
        else:
            floor, favor, norm = float(match[5]), match[6] == "1", match[7] == "1"
            rule = FisherRule(coefficients, models(arrays, "fisher"), floor, favor, norm)
        out = merge_in_memory(Job(models(arrays, "param"), dtype=dtype), rule)
        for name, wanted in under(arrays, f"{prefix}__").items():
            np.testing.assert_allclose(out[name].numpy(), wanted.numpy(), err_msg=f"{prefix} {name}", **CLOSE)
            if tuple(coefficients) == (1,) + (0,) * (len(coefficients) - 1):
                assert torch.equal(out[name], torch.from_numpy(arrays[f"param0__{name}"]))
    assert seen


def test_norms(arrays: Arrays) -> None:
    fishers = models(arrays, "fisher")
    rule = FisherRule([1.0] * len(fishers), fishers)
    rule.survey(Job(models(arrays, "param")))
    np.testing.assert_allclose(rule.norms, arrays["fisher_l2_norms"], rtol=1e-6)


def test_grids(arrays: Arrays) -> None:
    for name in [name for name in arrays if name.startswith("grid_coeffs_")]:
        count = int(name.split("_")[2])
        grid = coefficient_candidates("grid", 2, count, seed=0)
        assert len(grid) == count
        np.testing.assert_allclose(grid[: len(arrays[name])], arrays[name], atol=1e-12)


def estimate(weights: dict[str, Tensor], forward: Callable[..., Tensor], x: Tensor) -> dict[str, Tensor]:
    model = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in weights.items()})

    def log_probabilities(example: dict[str, Tensor]) -> Tensor:
        return forward(example["x"], **model).log_softmax(-1)

    examples = [{"x": row.unsqueeze(0)} for row in x]
    return diagonal_fisher(model, dict(model.items()), examples, exact(log_probabilities))


def test_estimate(arrays: Arrays) -> None:
    weights = {name: torch.from_numpy(arrays[f"est__{name}"]) for name in ("W1", "b1", "W2", "b2")}

    def forward(x: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
        return torch.tanh(x @ W1 + b1) @ W2 + b2

    found = estimate(weights, forward, torch.from_numpy(arrays["est__x"]))
    for name, wanted in under(arrays, "est__fisher__").items():
        np.testing.assert_allclose(found[name].numpy(), wanted.numpy(), err_msg=name, **CLOSE)


def test_linear_estimate(arrays: Arrays) -> None:
    x = torch.from_numpy(arrays["est__x"])
    weights = {"W": torch.from_numpy(arrays["est_linear__W"])}
    found = estimate(weights, lambda x, W: x @ W, x)["W"]
    np.testing.assert_allclose(found.numpy(), arrays["est_linear__fisher__W"], **CLOSE)
    p = (x @ weights["W"]).softmax(-1)
    closed = torch.einsum("nd,nk->dk", x.square(), p * (1 - p)) / len(x)
    np.testing.assert_allclose(found.numpy(), closed.numpy(), **CLOSE)

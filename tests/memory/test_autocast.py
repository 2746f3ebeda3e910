"""Under autocast a followed operator computes in the same types as one that nobody follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transfer_run.memory.tracker import MemoryTracker

HALF, WHOLE = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 4)
OPERATORS: dict[str, Callable[[], Tensor]] = {
    "einsum": lambda: torch.einsum("bd,dc->bc", HALF, WHOLE),  # made of others, autocast casts these
    "matmul": lambda: HALF @ WHOLE,
    "linear": lambda: torch.nn.functional.linear(HALF, WHOLE.T),
    "cosine_similarity": lambda: torch.cosine_similarity(HALF, WHOLE[:2, :3]),
    "mse_loss": lambda: torch.nn.functional.mse_loss(HALF, WHOLE[:2, :3]),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("inference", [False, True])
def test_types_are_those_of_an_unfollowed_run(name: str, inference: bool) -> None:
    def result() -> Tensor:
        with torch.inference_mode(inference), torch.autocast("cpu", dtype=torch.bfloat16):
            return OPERATORS[name]()

    expected = result()
    with MemoryTracker() as tracker:
        tracker.mark("evaluation")
        followed = result()
    assert followed.dtype == expected.dtype
    torch.testing.assert_close(followed, expected)

"""Under autocast a followed operator computes in the same types as one that nobody follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transfer_run.memory.tracker import MemoryTracker

HALF, WHOLE = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 4)
OPERATORS: dict[str, Callable[[], Tensor]] = {
    "einsum": lambda: torch.einsum("bd,dc->bc", WHOLE.T, WHOLE),  # made of others, autocast casts these
    "einsum of two types": lambda: torch.einsum("bd,dc->bc", HALF, WHOLE),
    "matmul": lambda: HALF @ WHOLE,
    "linear": lambda: torch.nn.functional.linear(HALF, WHOLE.T),
    "cosine_similarity": lambda: torch.cosine_similarity(HALF, WHOLE[:2, :3]),
    "mse_loss": lambda: torch.nn.functional.mse_loss(HALF, WHOLE[:2, :3]),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_types_are_those_of_an_unfollowed_run(name: str, inference: bool, mixed: bool) -> None:
    if not mixed and name in ("matmul", "linear", "einsum of two types"):
        pytest.skip("takes two types under autocast alone")

    def result() -> Tensor:
        with torch.inference_mode(inference), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            return OPERATORS[name]()

    expected = result()
    with MemoryTracker() as tracker:
        tracker.mark("evaluation")
        followed = result()
    assert followed.dtype == expected.dtype
    torch.testing.assert_close(followed, expected)


def test_a_tracker_leaves_no_mode_behind() -> None:
    """A function mode that stayed would slow every later call down, one more for each run."""
    for _ in range(3):
        with MemoryTracker():
            torch.ones(3).sum()
    assert torch.overrides._get_current_function_mode_stack() == []

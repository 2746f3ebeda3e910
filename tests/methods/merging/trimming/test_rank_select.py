"""The streamed r-th smallest is the sorted one, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transfer_run.methods.merging.trimming.rank_select import RankSelect


def select(values: torch.Tensor, rank: int, pieces: int) -> RankSelect:
    found = RankSelect(rank, values.dtype)
    while not found.done:
        for piece in values.chunk(pieces):
            found.add(piece)
        found.narrow()
    return found


@pytest.mark.parametrize("width", [32, 64])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_sorting(width: int, data: st.DataObject) -> None:
    dtype = np.float32 if width == 32 else np.float64
    numbers = st.floats(-1e6, 1e6, width=width) | st.sampled_from([0.0, -0.0, 0.5, -0.5, 1e-40])
    values = torch.from_numpy(data.draw(hnp.arrays(dtype, st.integers(1, 60), elements=numbers)))
    rank = data.draw(st.integers(1, len(values)))
    found = select(values, rank, data.draw(st.integers(1, 4)))
    wanted = values.abs().sort().values[rank - 1].item()
    assert found.value == wanted
    assert found.below == int((values.abs() < wanted).sum())
    assert found.equal == int((values.abs() == wanted).sum())


def test_infinite_values_are_noticed() -> None:
    for bad in (float("inf"), float("nan"), float("-inf")):
        found = RankSelect(1)
        found.add(torch.tensor([1.0, 3e38]))
        assert not found.not_finite
        found.add(torch.tensor([bad]))
        assert found.not_finite

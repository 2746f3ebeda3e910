"""Rows of splits, the scaler and the few-shot slice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from transfer_run.data.series.windows import Part, Scaler, few_shot, parts, split_sizes
from transfer_run.errors import UserError

SHARES = {"validation": 0.1, "test": 0.2}


def test_the_benchmarks_splits_and_their_windows() -> None:
    """ETTh1: 8640, 2880 and 2880 rows; 2785 test windows at T = 512, H = 96."""
    sizes = split_sizes(17420, {"train": 8640, "validation": 2880, "test": 2880}, SHARES, "")
    found = parts(sizes, 512)
    assert found == {"train": Part(0, 8640), "validation": Part(8128, 11520), "test": Part(11008, 14400)}
    assert {name: part.windows(512, 96) for name, part in found.items()} == {
        "train": 8640 - 512 - 96 + 1,
        "validation": 2785,
        "test": 2785,
    }


def test_shares_round_down_and_validation_takes_what_is_over() -> None:
    assert split_sizes(1003, None, SHARES, "") == {"train": 702, "validation": 101, "test": 200}
    assert split_sizes(10, None, SHARES, "") == {"train": 7, "validation": 1, "test": 2}
    with pytest.raises(UserError, match="leave nothing to train on"):
        split_sizes(10, None, {"validation": 0.5, "test": 0.5}, "")
    with pytest.raises(UserError, match=r"have 10 rows, .* asks for 12"):
        split_sizes(10, {"train": 4, "validation": 4, "test": 4}, SHARES, "")


def test_the_few_shot_slice_of_the_paper() -> None:
    """int(0.05 * (8640 - 512)) + 512 = 918 rows, the last ones, of 311 windows."""
    whole = Part(0, 8640)
    assert few_shot(whole, 512, 0.05, "last") == Part(8640 - 918, 8640)
    assert few_shot(whole, 512, 0.05, "last").windows(512, 96) == 311
    assert few_shot(whole, 512, 0.05, "first") == Part(0, 918)
    assert few_shot(whole, 512, None, "last") == whole
    assert few_shot(whole, 512, 1.0, "last") == whole


def test_the_scaler_is_scikit_learns() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (50, 3))
    rows[:, 2] = 7
    ours, theirs = Scaler.of(rows), StandardScaler().fit(rows)
    np.testing.assert_allclose(ours(rows), theirs.transform(rows))
    rows[3, 0] = np.nan
    assert Scaler.of(rows).mean[0] == pytest.approx(np.delete(rows[:, 0], 3).mean())

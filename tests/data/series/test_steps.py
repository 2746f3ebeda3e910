"""Times, equal steps, and what is missing between them."""

from __future__ import annotations

import numpy as np
import pytest

from transfer_run.data.series.steps import TOKENS, Regular, filled, parsed_step, parsed_times, regular
from transfer_run.errors import UserError


def at(row: int) -> str:
    return f"row {row + 1}"


def test_times_are_read_as_they_are_written() -> None:
    assert np.diff(parsed_times(["2016-07-01 00:00:00", "2016-07-01T01:00"], None, at)).tolist() == [3600]
    days = parsed_times(["01.02.2020", "02.02.2020"], "%d.%m.%Y", at)
    assert np.diff(days).tolist() == [86400]
    zoned = parsed_times(["2020-01-01T00:00+02:00", "2020-01-01T00:00+01:00"], None, at)
    assert np.diff(zoned).tolist() == [3600]


@pytest.mark.parametrize(
    ("times", "said", "row"),
    [
        (["2020-01-01", "01/02/2020"], "no time in ISO 8601", "row 2"),
        (["2020-01-01", "2020-01-01"], "stands twice", "row 2"),
        (["2020-01-02", "2020-01-03", "2020-01-01"], "out of order", "row 3"),
        (["2020-01-01T00:00+00:00", "2020-01-02T00:00"], "name a zone", "row 2"),
    ],
)
def test_a_time_that_is_none_is_named_with_its_row(times: list[str], said: str, row: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parsed_times(times, None, at)
    assert error.value.where == row


def test_a_missing_row_is_a_gap_and_another_step_is_refused() -> None:
    notes: list[str] = []
    hours = np.array([0.0, 1, 2, 4, 5]) * 3600
    series = regular(hours, np.arange(5.0)[:, None], None, at, notes)
    assert (series.step, series.start, series.token) == (3600, 0, TOKENS[3600])
    assert np.isnan(series.values[3, 0])
    assert series.values[[0, 1, 2, 4, 5], 0].tolist() == [0, 1, 2, 3, 4]
    assert notes == ["1 rows are missing between steps of 1 h"]
    with pytest.raises(UserError, match="30 min before this row, 1 h before most") as error:
        regular(np.array([0, 3600, 5400, 9000.0, 12600]), np.zeros((5, 1)), None, at, [])
    assert error.value.where == "row 3"


def test_a_named_step_takes_means_and_rows_takes_rows() -> None:
    seconds = np.array([0, 1200, 3700, 11000.0])
    values = np.array([[1.0], [3], [5], [np.nan]])
    series = regular(seconds, values, "1h", at, [])
    np.testing.assert_equal(series.values[:, 0], [2, 5, np.nan, np.nan])
    assert regular(seconds, values, "rows", at, []).step is None
    assert parsed_step("15min") == 900
    for wrong in ("quarter", "0h", "1", "h"):
        with pytest.raises(UserError, match="no step of time"):
            parsed_step(wrong)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ("interpolate", [2.0, 2, 3, 4, 4]),
        ("previous", [2.0, 2, 2, 4, 4]),
        ("mask", [np.nan, 2, np.nan, 4, np.nan]),
    ],
)
def test_gaps_are_filled_as_asked_and_counted(gaps: str, expected: list[float]) -> None:
    values = np.array([[np.nan, 0], [2, 1], [np.nan, 2], [4, 3], [np.nan, 4]])
    notes: list[str] = []
    out = filled(Regular(values, 0.0, 3600.0), gaps, ("a", "b"), notes)
    np.testing.assert_equal(out[:, 0], expected)
    np.testing.assert_equal(out[:, 1], [0, 1, 2, 3, 4])
    assert notes == [f"missing values (a 3): {gaps}"]


def test_gaps_are_refused_with_column_and_time() -> None:
    values = np.array([[1.0, 0], [2, np.nan]])
    with pytest.raises(UserError, match="Values are missing, of 2 steps: b 1") as error:
        filled(Regular(values, 0.0, 3600.0), "refuse", ("a", "b"), [])
    assert error.value.where == "column 'b', 1970-01-01 01:00:00"
    with pytest.raises(UserError, match="'a' has no value at all"):
        filled(Regular(np.full((3, 1), np.nan), None, None), "interpolate", ("a",), [])

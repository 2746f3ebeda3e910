"""A table of series, from its file to a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transfer_run.data.base import DataModule
from transfer_run.data.load import batch_spec, build_data, build_task
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.sets.seasonal_series import SITES, generated
from transfer_run.data.sets.series_file import SeriesFile
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

ROWS = 400
SMALL = ["backbone.architecture.context_length=24", "backbone.architecture.prediction_length=6"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """400 hours of two channels, and a column of words."""
    made = np.random.default_rng(0).normal(5, 3, (ROWS, 2)).round(3)
    times = np.datetime64("2020-01-01T00", "h") + np.arange(ROWS)
    lines = [f"{when},{a},{b},text" for when, (a, b) in zip(times, made, strict=True)]
    path = tmp_path / "load.csv"
    path.write_text("date,load,heat,remark\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def series(file: Path | str, *words: str) -> DataModule:
    own = ["method=pretrain", "backbone=dlinear", "dataset=series_file", f"dataset.path={file}", *SMALL]
    config: Any = compose([*own, "dataset.channels=[load,heat]", *words]).config
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return data


def edited(file: Path, row: int, text: str) -> Path:
    """The file with another line, counted from 0 without the header; of no text without the line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[row + 1 : row + 2] = [text] if text else []
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_windows_are_standardised_rows_of_the_file(file: Path) -> None:
    data = series(file)
    table = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2))
    train = table[:280]
    whole = (table - train.mean(0)) / train.std(0)
    assert data.sizes == {"train": 280 - 29, "validation": 40 + 24 - 29, "test": 80 + 24 - 29}
    for split, row, first in (("train", 7, 7), ("validation", 0, 280 - 24), ("test", 5, 320 - 24 + 5)):
        example = data.split(split)[row]
        np.testing.assert_allclose(example["past_values"], whole[first : first + 24], atol=1e-6)
        np.testing.assert_allclose(example["labels"], whole[first + 24 : first + 30], atol=1e-6)
    assert data.notes == ["columns that are no channel: remark"]
    assert data.transform_description["mean"] == pytest.approx(train.mean(0).tolist())


def test_a_batch_is_what_the_plan_expects(file: Path) -> None:
    for words in ([], ["dataset.exogenous=[heat]"], ["dataset.gaps=mask", "dataset.exogenous=[heat]"]):
        data = series(file, *words)
        batch = next(iter(data.loader("train", batch_size=4)))
        spec = batch_spec(data.dataset, data.backbone, 4)
        assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == spec


def test_exogenous_channels_are_known_and_not_forecast(file: Path) -> None:
    data = series(file, "dataset.exogenous=[heat]")
    assert (data.task.label_names, data.task.channels, data.task.exogenous) == (("load",), ("load", "heat"), ("heat",))
    example, both = data.split("train")[0], series(file).split("train")[0]["labels"]
    np.testing.assert_equal(np.concatenate([example["labels"], example["future_exogenous"]], 1), both)


def test_the_few_shot_slice_keeps_the_scaler_of_all_training_rows(file: Path) -> None:
    few, whole = series(file, "dataset.few_shot.fraction=0.25"), series(file)
    assert isinstance(few, SeriesFile)
    assert isinstance(whole, SeriesFile)
    assert few.sizes["train"] == 64 + 24 - 29
    np.testing.assert_equal(few.split("train")[0]["past_values"], whole.split("train")[280 - 88]["past_values"])
    np.testing.assert_equal(few.split("test")[0]["labels"], whole.split("test")[0]["labels"])
    assert "train: the last 88 of 280 rows, 59 windows (dataset.few_shot)" in few.notes


def test_a_row_that_is_only_repeated_is_not_scored(file: Path) -> None:
    example = series(file).example("test", Draw(0, scored=False))
    assert np.isnan(example["labels"]).all()
    assert not np.isnan(example["past_values"]).any()


def test_what_is_masked_is_zero_in_the_past_and_unknown_in_the_future(file: Path) -> None:
    data = series(edited(file, 25, "2020-01-02T01,,1.5,text"), "dataset.gaps=mask")
    example = data.split("train")[0]
    assert np.isnan(example["labels"][1, 0])
    assert not np.isnan(example["labels"]).all()
    past = data.split("train")[10]
    assert past["past_observed"].sum() == 24 * 2 - 1
    assert past["past_values"][15, 0] == past["past_observed"][15, 0] == 0


@pytest.mark.parametrize(
    ("row", "text", "words", "said", "where"),
    [
        (9, "2020-01-01T09,,1,text", [], "Values are missing, of 400 steps: load 1", "column 'load', 2020-01-01 09:00"),
        (9, "", [], "Values are missing, of 400 steps: load 1, heat 1", "2020-01-01 09:00"),
        (9, "2020-01-01T09,1,5;3,text", [], "'5;3' is no number", "row 10, column 'heat'"),
        (9, "2020-01-01T09,inf,1,text", [], "infinite", "row 10, column 'load'"),
        (9, "2020-01-01T09:20,1,1,text", [], "The steps differ: 80 min before this row", "row 10, column 'date'"),
        (9, "2020-01-01T08,1,1,text", [], "stands twice", "row 10, column 'date'"),
        (0, "2020-01-01T00,1,1,text", ["dataset.time_column=time"], "no column 'time'", "date, load"),
        (0, "2020-01-01T00,1,1,text", ["dataset.channels=[lod]"], "no column 'lod'", "date, load"),
        (0, "2020-01-01T00,1,1,text", ["dataset.few_shot.fraction=0.001"], "train hold no window", "series_file"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    row: int, text: str, words: list[str], said: str, where: str, file: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        series(edited(file, row, text), *words)
    assert where in error.value.where


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.channels=null"], "The channels are not named"),
        (["dataset.targets=[lode]"], "'lode' is no channel"),
        (["dataset.exogenous=[load,heat]"], "No channel is forecast"),
        (["dataset.exogenous=[load]", "dataset.targets=[load]"], "'load' is forecast and known"),
        (["dataset.channels=[load,load]"], "named twice"),
        (["dataset.horizon=7"], "forecasts 6 steps, 7 are asked"),
        (["dataset.time_step=hourly"], "no step of time"),
    ],
)
def test_words_are_refused_without_data(words: list[str], said: str) -> None:
    own = ["method=pretrain", "backbone=dlinear", "dataset=series_file", *SMALL, "dataset.channels=[load,heat]"]
    config: Any = compose([*own, *words]).config
    with pytest.raises(UserError, match=said):
        build_task(config["dataset"], config["backbone"])


def test_irregular_rows_can_be_averaged_and_gaps_filled(file: Path) -> None:
    data = series(edited(file, 9, "2020-01-01T09:20,1,1,text"), "dataset.time_step=2h", "dataset.gaps=interpolate")
    assert sum(data.sizes.values()) == sum(series(file, "dataset.time_step=2h").sizes.values())
    assert any(note.startswith("400 rows averaged over steps of 2 h: 200 steps") for note in data.notes)


def test_the_embedded_series_is_the_same_on_every_machine() -> None:
    """Its means, so that a change of the generator is seen; the two sites differ, and days only add rows."""
    north, south = (generated(60, SITES[name]) for name in ("north", "south"))
    assert north.mean(0) == pytest.approx([14.956723, 10.234697, 10.270471, -4.46014784])
    np.testing.assert_allclose(generated(30, SITES["north"])[:, 3], north[: 30 * 24, 3])
    assert south[:, 3].mean() > north[:, 3].mean() + 5
    daily = north[:, 1] - north[:, 1].mean()
    assert np.corrcoef(daily[:-168], daily[168:])[0, 1] > 0.6  # a week later it is much the same
    config: Any = compose(["method=pretrain", "backbone=dlinear_tiny", "dataset=seasonal_series"]).config
    data = build_data(config["dataset"], config["backbone"], 0)
    batch = next(iter(data.loader("test", batch_size=3)))
    assert batch["labels"].shape == (3, 24, 4)
    assert torch.isfinite(batch["past_values"]).all()

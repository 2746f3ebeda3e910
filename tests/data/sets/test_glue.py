"""STS-B's scores as classes of equal width (Fisher-weighted averaging trains it so)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from transfer_run.data.load import build_data, build_task
from transfer_run.data.scores.labels import Scores
from transfer_run.data.sets.glue import binned
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose


def test_scores_are_cut_into_classes_of_equal_width() -> None:
    every = np.arange(0, 5.0001, 0.2)  # 0.0, 0.2, ... 5.0: each begins a class but the last, which ends one
    assert binned(every, 25).tolist() == [*range(25), 24]
    assert binned(np.array([0.19, 0.6, 3.8, 4.99, np.nan]), 25).tolist() == [0, 3, 19, 24, -1]
    assert binned(np.array([0.0, 2.4, 2.5, 5.0]), 2).tolist() == [0, 0, 1, 1]


def test_correlations_of_classes_are_those_of_their_middles() -> None:
    generator = np.random.default_rng(0)
    right, said = generator.integers(0, 25, 200), generator.integers(0, 25, 200)
    node = registry.entry("dataset", "glue/stsb_classes").content["dataset"]
    config = compose(["dataset=glue/stsb_classes", "backbone=bert_tiny", "method=full"]).config
    scores = Scores(build_task(config["dataset"], config["backbone"]))
    for part in range(0, 200, 50):
        batch = {"labels": torch.tensor(right[part : part + 50])}
        scores.update(torch.tensor(said[part : part + 50]), batch)
    found = scores.compute()
    middles = [0.2 * each + 0.1 for each in (right, said)]
    assert found["pearson"] == pytest.approx(stats.pearsonr(*middles)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(*middles)[0])
    assert found["glue"] == pytest.approx((found["pearson"] + found["spearman"]) / 2)
    assert node["bins"] == 25


def written(folder: Path, *scores: str) -> str:
    rows = "".join(f"one {n},two {n},{score}\n" for n, score in enumerate(scores))
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text(f"sentence1,sentence2,label\n{rows}", encoding="utf-8")
    return str(folder)


def data_of(*words: str) -> object:
    config = compose(["dataset=glue/stsb_classes", "backbone=bert_tiny", "method=full", *words]).config
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return data


def test_rows_are_read_and_others_refused(tmp_path: Path) -> None:
    path = f"dataset.path={written(tmp_path, '5.0', '0', '3.8', '')}"
    data = data_of(path)
    assert data.labels("train").tolist() == [24, 0, 19, -100]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="labels, not 5"):
        data_of(path, "dataset.num_labels=5")
    halves = data_of(path, "dataset.bins=5")
    assert halves.labels("train").tolist() == [4, 0, 3, -100]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="not between 0 and 5"):
        data_of(f"dataset.path={written(tmp_path, '5.1')}")

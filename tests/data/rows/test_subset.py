"""`dataset.rows`: a part of a data set, from a file to the batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.data.rows.subset import digest, read_subset, write_subset
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.identity import identity

CONFIGS = Path(__file__).parents[3] / "configs"


def digits(rows: Path | None = None, **changes: Any) -> DataModule:
    dataset = yaml.safe_load((CONFIGS / "dataset" / "digits.yaml").read_text(encoding="utf-8"))["dataset"]
    backbone = yaml.safe_load((CONFIGS / "backbone" / "vit_tiny.yaml").read_text(encoding="utf-8"))
    return build_data({**dataset, "rows": None if rows is None else str(rows), **changes}, backbone, 0)


def whole_rows(folder: Path, data: DataModule, **rows: list[int]) -> Path:
    kept = {split: np.asarray(kept) for split, kept in rows.items()}
    return write_subset(folder, "digits", data.label_names, data.sizes, kept)


def test_only_the_kept_rows_are_read_under_their_labels(tmp_path: Path) -> None:
    whole = digits()
    kept = [7, 3, 11, 200]
    part = digits(whole_rows(tmp_path, whole, train=kept))
    assert part.sizes == {**whole.sizes, "train": 4}
    for place, row in enumerate(kept):
        one, other = part.split("train")[place], whole.split("train")[row]
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["labels"] == other["labels"]
    assert part.labels("train").tolist() == whole.labels("train")[kept].tolist()
    assert part.task == whole.task  # the head keeps all classes
    seen = next(iter(part.loader("train", batch_size=4)))
    assert sorted(seen["labels"].tolist()) == sorted(whole.labels("train")[kept].tolist())


def test_all_rows_in_order_change_no_batch(tmp_path: Path) -> None:
    whole = digits()
    part = digits(whole_rows(tmp_path, whole, train=list(range(whole.sizes["train"]))))
    for one, other in zip(whole.loader("train", batch_size=50), part.loader("train", batch_size=50), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_labels_of_images_are_those_of_the_examples() -> None:
    data = digits()
    assert data.labels("test").tolist() == DataModule.labels(data, "test").tolist()


def test_rows_of_another_data_set_are_refused(tmp_path: Path) -> None:
    file = whole_rows(tmp_path, digits(), train=[0])
    with pytest.raises(UserError, match="another data set: its labels"):
        digits(file, classes=[0, 1, 2, 3, 4]).setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rows": {"train": [0, 0]}}', "kept twice"),
        ('{"rows": {"train": [0, 5]}}', "no row 5"),
        ('{"rows": {"train": [-1]}}', "no row -1"),
        ('{"rows": {"train": [0.5]}}', "whole numbers"),
        ('{"rows": {"trian": [0]}}', "no split 'trian'"),
        ('{"train": [0]}', "names no rows"),
        ("[0", "cannot be read"),
        ('{"rows": {"train": [0]}, "sizes": {"train": 6}}', "another data set: its sizes"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_subset(str(tmp_path), "digits", [], {"train": 5})


def test_a_file_by_hand_needs_rows_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"rows": {"train": [4, 1]}}), encoding="utf-8")
    assert read_subset(str(file), "digits", [], {"train": 5, "test": 2})["train"].tolist() == [4, 1]


def test_an_empty_split_and_a_missing_file(tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(UserError, match="'train' has no rows"):
        digits(whole_rows(tmp_path, data, train=[])).setup()
    with pytest.raises(UserError, match="no kept rows"):
        digits(tmp_path / "elsewhere").setup()


def test_the_digest_depends_on_the_rows_alone() -> None:
    one, other = {"a": np.array([1]), "b": np.array([2])}, {"b": np.array([2]), "a": np.array([1])}
    assert digest(one) == digest(other) != digest({"a": np.array([1])})


# ---- from the words of a run
WORDS = ["method=pretrain", "backbone=cnn_tiny", "dataset=digits"]
SELECTION = "method=dp4tl backbone=cnn_tiny dataset=digits method.keep_groups={} sources.surrogate='method=pretrain {}'"


def test_kept_rows_are_part_of_a_runs_identity(tmp_path: Path) -> None:
    whole = compose(WORDS)
    assert whole.config["dataset"]["rows"] is None
    dataset = {key: value for key, value in whole.config["dataset"].items() if key != "rows"}
    assert (
        identity({**whole.config, "dataset": dataset}, {}, {}) == whole.identity
    )  # runs from before there was such a key keep their names
    source = "backbone=cnn_tiny dataset=digits dataset.classes=[0,1,2,3,4]"
    selected = [compose([*WORDS, f"dataset.rows=run:{SELECTION.format(n, source)}"]) for n in (2, 3)]
    again = compose([*WORDS, f"dataset.rows=run:{SELECTION.format(2, source)} seed=0"])
    assert again.identity == selected[0].identity
    assert len({whole.identity, *(run.identity for run in selected)}) == 3
    (tmp_path / "rows.json").write_text('{"rows": {"train": [0]}}', encoding="utf-8")
    assert compose([*WORDS, f"dataset.rows={tmp_path}"]).identity not in {
        whole.identity,
        *(run.identity for run in selected),
    }


def test_rows_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        compose([*WORDS, f"dataset.rows={tmp_path / 'none.json'}"])
    assert "dataset.rows" in error.value.where


def test_a_part_of_a_part_leaves_the_whole_as_it_is(tmp_path: Path) -> None:
    whole = digits(whole_rows(tmp_path, digits(), train=[7, 3, 11, 200]))
    part = whole.part({"train": np.array([2, 0])}).part({"train": np.array([1])})
    assert (part.sizes["train"], whole.sizes["train"]) == (1, 4)
    assert part.sizes["test"] == whole.sizes["test"]
    assert torch.equal(part.split("train")[0]["pixel_values"], digits().split("train")[7]["pixel_values"])
    assert part.labels("train").tolist() == whole.labels("train")[:1].tolist()
    assert len(list(part.loader("train", batch_size=4))) == 1

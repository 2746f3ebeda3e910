"""Method, backbone and dataset: which go together."""

from __future__ import annotations

from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.fit import check_fit

TEXT = {"name": "sentences", "form": "classification", "max_source_length": 32}
PICTURES = {"name": "pictures", "form": "classification", "max_source_length": None}


def pair(family: str, dataset: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {"method": {"name": "m", "about": about}, "backbone": {"name": "b", "family": family}, "dataset": dataset}


@pytest.mark.parametrize(
    "values",
    [
        pair("t5", TEXT),
        pair("encoder", TEXT, backbones=["encoder", "t5"]),
        pair("vit", PICTURES, backbones=["vit"]),
        pair("clip", PICTURES),
        pair("clip", TEXT),
        pair("t5", {**TEXT, "form": "text_to_text"}),
        pair("t5", TEXT, tasks=["text_to_text"]),
        pair("decoder", {**TEXT, "form": "language_modeling"}),
        pair("forecaster", {**TEXT, "form": "forecast"}),
    ],
)
def test_pairs_that_fit(values: dict[str, Any]) -> None:
    check_fit(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pair("cnn", PICTURES, backbones=["vit", "t5"]), r"method=m is not defined on backbone=b \(family cnn\)"),
        (pair("encoder", PICTURES), "dataset=pictures holds images"),
        (pair("vit", TEXT), "dataset=sentences holds text"),
        (pair("encoder", {**TEXT, "form": "text_to_text"}), "asks for text_to_text"),
        (pair("t5", {**TEXT, "form": "language_modeling"}), "asks for language_modeling"),
        (pair("vit", {**PICTURES, "form": "language_modeling"}), "asks for language_modeling"),
        (pair("encoder", TEXT, tasks=["regression"]), "method=m does not train on dataset=sentences"),
    ],
)
def test_pairs_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_fit(values)
    assert error.value.remedy.startswith("choose")


@pytest.mark.parametrize(("tower", "fits"), [("image", PICTURES), ("text", TEXT), ("both", TEXT), ("both", PICTURES)])
def test_a_tower_of_clip_reads_its_own_kind(tower: str, fits: dict[str, Any]) -> None:
    values = pair("clip", fits)
    values["backbone"]["tower"] = tower
    check_fit(values)
    if tower != "both":
        values["dataset"] = TEXT if fits is PICTURES else PICTURES
        with pytest.raises(UserError, match="does not read"):
            check_fit(values)

"""Method, backbone and dataset: which go together."""

from __future__ import annotations

from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import check_fit

TEXT = {"name": "sentences", "form": "classification", "max_source_length": 32}
PICTURES = {"name": "pictures", "form": "classification", "about": {"holds": "images"}}
PAIRS = {"name": "captions", "form": "retrieval", "max_source_length": 32}


def pair(family: str, dataset: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {"method": {"name": "m", "about": about}, "backbone": {"name": "b", "family": family}, "dataset": dataset}


def own(dataset: dict[str, Any], **declared: Any) -> dict[str, Any]:
    """A family of the user's own."""
    values = pair("mine", dataset)
    values["backbone"]["about"] = {"target": "mine.Mine", **declared}
    return values


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
        pair("t5", {**TEXT, "form": "span_corruption"}),
        pair("vit", {**PICTURES, "form": "transfer_run.task:Forecast"}),  # a form of one's own, which no family names
        pair("vit", {"name": "mine", "form": "classification"}),  # a data set that does not say what it holds
        own(TEXT, reads=["text"], answers=["classification"]),
        own({"name": "curves", "form": "transfer_run.task:Forecast", "about": {"holds": "series"}}, reads=["series"]),
        pair("vit", PICTURES, asks=["parts", "attention"]),
        own(PICTURES),  # a family that does not say what it reads
    ],
)
def test_pairs_that_fit(values: dict[str, Any]) -> None:
    check_fit(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pair("cnn", PICTURES, backbones=["vit", "t5"]), r"method=m is not defined on backbone=b \(family cnn\)"),
        (pair("cnn", PICTURES, asks=["parts"]), "it needs blocks whose projections, norms and feed-forward parts have"),
        (pair("encoder", PICTURES), "dataset=pictures holds images"),
        (pair("vit", TEXT), "dataset=sentences holds text"),
        (pair("encoder", {**TEXT, "form": "text_to_text"}), "asks for text_to_text"),
        (pair("t5", {**TEXT, "form": "language_modeling"}), "asks for language_modeling"),
        (pair("vit", {**PICTURES, "form": "language_modeling"}), "asks for language_modeling"),
        (pair("encoder", {**TEXT, "form": "span_corruption"}), "asks for span_corruption"),
        (pair("t5", {"name": "curves", "form": "regression", "about": {"holds": "series"}}), "curves holds series"),
        (own(PICTURES, reads=["text"]), "holds images"),
        (own({**TEXT, "form": "regression"}, answers=["classification"]), "asks for regression"),
        (pair("encoder", TEXT, tasks=["regression"]), "method=m does not train on dataset=sentences"),
    ],
)
def test_pairs_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_fit(values)
    assert error.value.remedy.startswith("choose")


def test_what_a_method_asks_is_answered_with_what_has_it() -> None:
    with pytest.raises(UserError) as error:
        check_fit(pair("encoder", TEXT, asks=["memory"]))
    assert error.value.what.endswith("it needs a decoder that reads an encoder.")
    assert "t5" in error.value.remedy


def test_a_family_that_there_is_not() -> None:
    with pytest.raises(UserError, match="no family of backbones 'vitt'") as error:
        check_fit(pair("vitt", PICTURES))
    assert error.value.nearest[0] == "vit"


@pytest.mark.parametrize(("tower", "fits"), [("image", PICTURES), ("text", TEXT), ("both", PAIRS)])
def test_a_tower_of_clip_reads_its_own_kind(tower: str, fits: dict[str, Any]) -> None:
    values = pair("clip", fits)
    values["backbone"]["tower"] = tower
    check_fit(values)
    for other in (TEXT, PICTURES, PAIRS):
        values["dataset"] = other
        if other is not fits:
            with pytest.raises(UserError, match=r"does not read|both towers|tower alone"):
                check_fit(values)


def test_a_method_may_use_both_towers_for_one_kind() -> None:
    values = pair("clip", PICTURES, tower="both")
    values["backbone"]["tower"] = "both"
    check_fit(values)


def test_augmentation_varies_images_and_goes_with_no_stored_taps() -> None:
    views = {"augment": ["horizontal_flip"]}
    check_fit(pair("vit", {**PICTURES, **views}) | {"cache": {"taps": "none"}})
    with pytest.raises(UserError, match="the operations of"):
        check_fit(pair("t5", {**TEXT, **views}))
    with pytest.raises(UserError, match="Stored taps are those of one view"):
        check_fit(pair("vit", {**PICTURES, **views}) | {"cache": {"taps": "disk"}})
    with pytest.raises(UserError, match="no operation 'horizontal_flop'") as error:
        check_fit(pair("vit", {**PICTURES, "augment": ["horizontal_flop"]}))
    assert "horizontal_flip" in error.value.nearest

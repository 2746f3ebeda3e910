"""A default that depends on what the data set holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

ROOT = Path(__file__).parents[3]
IMAGES, TEXT = ("backbone=vit_tiny", "dataset=digits"), ("backbone=bert_tiny", "dataset=python_docs")


def rate(*words: str) -> float:
    return float(compose(list(words)).config["optimizer"]["lr"])


@pytest.mark.parametrize("method", ["bitfit", "adapter"])
def test_a_default_rate_on_images_is_the_best_that_was_found_there(method: str) -> None:
    found = json.loads((ROOT / "tests" / "recorded" / "rates" / "digits.json").read_text(encoding="utf-8"))["methods"]
    assert rate(f"method={method}", *IMAGES) == float(found[method]["rate"])
    assert rate(f"method={method}", *TEXT) == 3e-4


def test_a_word_takes_its_place_and_is_checked() -> None:
    assert rate("method=adapter", *IMAGES, "optimizer.lr=7e-4") == 7e-4
    with pytest.raises(UserError, match="must be a number of at least 0"):
        rate("method=adapter", *IMAGES, "optimizer.lr=fast")


def test_data_of_no_kind_take_the_standard(tmp_path: Path) -> None:
    """Pairs of image and text are neither; nor is a data set of one's own that says nothing."""
    (tmp_path / "method").mkdir()
    text = (ROOT / "configs" / "method" / "full.yaml").read_text(encoding="utf-8")
    text = text.replace("name: full", "name: mine").replace("lr: 3.0e-4", 'lr: "${by_data:0.5,{images: 0.25}}"')
    (tmp_path / "method" / "mine.yaml").write_text(text, encoding="utf-8")
    here = f"hydra.searchpath=[{tmp_path}]"
    assert rate("method=mine", here, *IMAGES) == 0.25
    assert rate("method=mine", here, *TEXT) == 0.5
    assert rate("method=mine", here, "backbone=clip_tiny", "backbone.tower=both", "dataset=digit_captions") == 0.5


def test_a_default_may_follow_a_key_of_the_method(tmp_path: Path) -> None:
    """The entry of its value, null without one; a word takes its place."""
    (tmp_path / "method").mkdir()
    text = (ROOT / "configs" / "method" / "partial.yaml").read_text(encoding="utf-8")
    text = text.replace("name: partial", "name: mine") + 'trainer:\n  patience: "${by_key:seed,{1: 5}}"\n'
    (tmp_path / "method" / "mine.yaml").write_text(text, encoding="utf-8")
    here = (f"hydra.searchpath=[{tmp_path}]", "method=mine", *IMAGES)
    found = [
        compose([*here, *words]).config["trainer"]["patience"] for words in ([], ["seed=1"], ["trainer.patience=7"])
    ]
    assert found == [None, 5, 7]

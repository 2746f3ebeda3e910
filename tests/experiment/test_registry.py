"""What there is to choose from, read from the files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment import registry

USER = Path(__file__).parent / "user_configs"


def test_packaged_and_own_choices_stand_side_by_side() -> None:
    assert {"full", "lst"} <= set(registry.names("method"))
    assert "toy" not in registry.names("method")
    assert {"full", "lst", "toy"} <= set(registry.names("method", [USER]))
    assert registry.names("method", [USER]) == sorted(registry.names("method", [USER]))


def test_a_nested_choice_is_named_by_its_path() -> None:
    assert "suite/pictures" in registry.names("dataset", [USER])
    assert registry.find("dataset", "suite/pictures", [USER]) == [(USER / "dataset/suite/pictures.yaml").resolve()]


def test_entry_of_a_method() -> None:
    entry = registry.entry("method", "toy", [USER])
    assert (entry.name, entry.title, entry.family) == ("toy", "A toy of mine", "tuning")
    assert entry.file == USER / "method" / "toy.yaml"
    assert entry.content["optimizer"] == {"lr": 0.01}


def test_entry_takes_title_from_the_comment_and_the_rest_from_the_file_it_builds_on() -> None:
    entry = registry.entry("backbone", "small_encoder", [USER])
    assert (entry.title, entry.family) == ("An encoder with random weights", "encoder")
    assert entry.content["backbone"]["architecture"] == {"d_model": 8, "num_layers": 2}


def test_a_file_that_begins_with_an_underscore_is_no_choice(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "_base.yaml").write_text(
        "# @package _global_\ndataset: {form: regression, batch_size: 3}\n"
    )
    (tmp_path / "dataset" / "mine.yaml").write_text("# @package _global_\ndefaults: [_base]\ndataset: {name: mine}\n")
    assert "_base" not in registry.names("dataset", [tmp_path])
    assert registry.entry("dataset", "mine", [tmp_path]).content["dataset"] == {
        "form": "regression",
        "batch_size": 3,
        "name": "mine",
    }


def test_numbers_are_read_as_omegaconf_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1e-3\nb: 1.5\nc: 3\nd: 1e\n")
    assert registry.read_yaml(tmp_path / "a.yaml") == {"a": 0.001, "b": 1.5, "c": 3, "d": "1e"}


@pytest.mark.parametrize(("text", "line"), [("a: [1\nb: 2\n", "line 2"), ("- 1\n- 2\n", "")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        registry.entries("method", [tmp_path])
    assert str(tmp_path / "method" / "bad.yaml") in error.value.where
    assert line in error.value.where


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("lts", "lst"), ("picture", "suite/pictures"), ("suit/pictures", "suite/pictures"), ("to", "toy")],
)
def test_nearest_choices(wrong: str, near: str) -> None:
    assert registry.nearest_choices(wrong, ["lst", "full", "toy", "suite/pictures", "lora"])[0] == near


def test_unknown_choice_names_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError) as error:
        registry.entry("method", "ful")
    assert error.value.nearest[0] == "full"
    assert "transfer-list methods" in error.value.remedy


def test_every_shipped_file_says_what_it_is() -> None:
    """A listing line for each: a name, and a title from `about` or the comment at the file's head."""
    nameless = [
        str(entry.file)
        for kind, group in registry.KINDS.items()
        for entry in registry.entries(group)
        if len(entry.title) < 8 or (kind in ("methods", "backbones", "datasets") and not entry.family)
    ]
    assert nameless == []

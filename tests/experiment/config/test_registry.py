"""What there is to choose from, read from the files alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.types import RunMode

from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import Composer
from transfer_run.files import read_yaml

USER = Path(__file__).parents[2] / "user_configs"


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


def test_a_file_that_begins_with_an_underscore_is_there_to_be_built_on(tmp_path: Path) -> None:
    """Relative names start where Hydra starts: at the group for a choice, beside itself for what it builds on."""
    suite = tmp_path / "dataset" / "suite"
    suite.mkdir(parents=True)
    head = "# @package _global_\n"
    (suite / "_root.yaml").write_text(f"{head}dataset: {{form: regression, batch_size: 2}}\n")
    (suite / "_base.yaml").write_text(f"{head}defaults: [_root, _self_]\ndataset: {{batch_size: 3}}\n")
    (suite / "mine.yaml").write_text(f"{head}defaults: [suite/_base, _self_]\ndataset: {{name: suite/mine}}\n")
    assert not {"suite/_root", "suite/_base"} & set(registry.names("dataset", [tmp_path]))
    read = registry.entry("dataset", "suite/mine", [tmp_path]).content["dataset"]
    assert read == {"form": "regression", "batch_size": 3, "name": "suite/mine"}
    composed = Composer([tmp_path]).load(["dataset=suite/mine"], RunMode.RUN).dataset
    assert {key: composed[key] for key in read} == read


def test_numbers_are_read_as_omegaconf_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1e-3\nb: 1.5\nc: 3\nd: 1e\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 0.001, "b": 1.5, "c": 3, "d": "1e"}


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


def test_a_table_is_listed_under_its_method(tmp_path: Path) -> None:
    (tmp_path / "table" / "lst").mkdir(parents=True)
    (tmp_path / "table" / "lst" / "table99.yaml").write_text("# A table.\ntitle: Memory and accuracy\nrows: {}\n")
    entry = registry.entry("table", "lst/table99", [tmp_path])
    assert (entry.name, entry.family, entry.title) == ("lst/table99", "lst", "Memory and accuracy")


def test_configs_are_found_inside_an_installed_package(tmp_path: Path) -> None:
    """A wheel holds the configs beside the code; a checkout has them at its top."""
    package = Path(registry.__file__).parents[2]
    shutil.copytree(package, tmp_path / "transfer_run", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(registry.config_root(), tmp_path / "transfer_run" / "configs")
    script = (
        "from transfer_run.experiment.config.registry import config_root as r, names; "
        "print(r(), 'lst' in names('method'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path / "transfer_run" / "configs"), "True"], done.stderr


def test_every_shipped_file_says_what_it_is() -> None:
    """A listing line for each: a name, and a title from `about` or the comment at the file's head."""
    nameless = [
        str(entry.file)
        for kind, group in registry.KINDS.items()
        for entry in registry.entries(group)
        if len(entry.title) < 8 or (kind in ("methods", "backbones", "datasets") and not entry.family)
    ]
    assert nameless == []

"""A key of a user's own file that nobody reads: refused, with the nearest one that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.registry import config_root

WORDS = ["method=full", "backbone=bert_tiny", "dataset=python_docs", "hardware=cpu"]

CASES = [
    ("dataset", "python_docs", "text_columns:", "text_colums:", "dataset.text_columns"),
    ("dataset", "python_docs", "path: null", "path: null\n  valeu_step: 2", "dataset.value_step"),
    ("dataset", "digits", "path: null", "path: null\n  label_column: x", "dataset.label_names"),
    ("backbone", "bert_tiny", "tokenizer:", "tokeniser:", "backbone.tokenizer"),
    ("backbone", "vit_tiny", "mean:", "means:", "backbone.image.mean"),
    ("hardware", "auto", "accelerator:", "acelerator:", "hardware.accelerator"),
    ("logger", "wandb", "project:", "projekt:", "logger.project"),
    ("profiler", "none", "memory:", "memmory:", "profiler.memory"),
    ("optimizer", "sgd", "warmup:", "warm_up:", "optimizer.warmup"),
]


def own(group: str, name: str, folder: Path, before: str = "", after: str = "") -> list[str]:
    """A copy of a packaged file under the name `mine`, changed; the words that choose it."""
    text = (config_root() / group / f"{name}.yaml").read_text(encoding="utf-8")
    assert before in text
    named = f"\n  name: {name}\n" if f"\n  name: {name}\n" in text else f"name: {name}\n"
    assert named in text
    changed = text.replace(named, named.replace(name, "mine"), 1)
    changed = changed.replace(before, after) if before else changed
    (folder / group).mkdir(parents=True)
    (folder / group / "mine.yaml").write_text(changed, encoding="utf-8")
    return [*WORDS, f"{group}=mine"]


@pytest.mark.parametrize(("group", "name", "before", "after", "nearest"), CASES)
def test_a_key_that_nobody_reads(group: str, name: str, before: str, after: str, nearest: str, tmp_path: Path) -> None:
    words = own(group, name, tmp_path, before, after)
    with pytest.raises(UserError, match="Nobody reads the key") as error:
        compose(words, config_dir=str(tmp_path))
    assert nearest in error.value.nearest
    assert str(tmp_path / group / "mine.yaml") in error.value.where


@pytest.mark.parametrize(("group", "name"), [
    ("dataset", "python_docs"), ("dataset", "digits"), ("backbone", "bert_tiny"), ("hardware", "auto"),
    ("logger", "wandb"), ("profiler", "none"), ("optimizer", "sgd"),
])  # fmt: skip
def test_a_copy_of_ours_is_read(group: str, name: str, tmp_path: Path) -> None:
    words = [*own(group, name, tmp_path), *(["backbone=cnn_tiny"] if name == "digits" else [])]
    assert compose(words, config_dir=str(tmp_path)).config[group]["name"] == "mine"


def test_other_nodes_keys_too(tmp_path: Path) -> None:
    folder = tmp_path / "profiler"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\nprofiler: {name: mine, memory: false}\ntrainer: {max_epoch: 2}\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"no key 'trainer\.max_epoch'") as error:
        compose([*WORDS, "profiler=mine"], config_dir=str(tmp_path))
    assert error.value.nearest[0] == "trainer.max_epochs"


def letters(folder: Path, key: str, options: str = "{}") -> list[str]:
    """The file of a class of one's own, with one more key."""
    (folder / "dataset").mkdir()
    (folder / "dataset" / "letters.yaml").write_text(
        f"""# @package _global_
dataset:
  name: letters
  about: {{title: Letters, target: letters.Letters, holds: images, options: {options}}}
  form: classification
  num_labels: 26
  label_names: null
  metrics: [accuracy]
  batch_size: 32
  max_source_length: null
  max_target_length: null
  path: null
  {key}: 3
""",
        encoding="utf-8",
    )
    (folder / "letters.py").write_text("", encoding="utf-8")
    return ["method=full", "backbone=cnn_tiny", "dataset=letters"]


def test_a_class_of_ones_own_has_keys_of_its_own(tmp_path: Path) -> None:
    words = letters(tmp_path, "scans_per_page")
    assert compose(words, config_dir=str(tmp_path)).config["dataset"]["scans_per_page"] == 3


@pytest.mark.parametrize("options", ["{}", "{label_colum: int}"])
def test_nearly_a_key_that_others_have(options: str, tmp_path: Path) -> None:
    words = letters(tmp_path, "label_colum", options)
    if options != "{}":
        assert compose(words, config_dir=str(tmp_path)).config["dataset"]["label_colum"] == 3
        return
    with pytest.raises(UserError, match=r"dataset\.label_colum") as error:
        compose(words, config_dir=str(tmp_path))
    assert error.value.nearest == ["dataset.label_column"]
    assert "about.options" in error.value.remedy


@pytest.mark.parametrize("words", ["dataset.beside.unlabeled='mine'", "dataset.tests.other='mine'"])
def test_a_file_that_words_inside_words_name(words: str, tmp_path: Path) -> None:
    own("dataset", "digits", tmp_path, "path: null", "path: null\n  superfluous: 1")
    run = ["method=distill_similar", "backbone=cnn_tiny", "dataset=digits", words] if "beside" in words else [
        "method=full", "backbone=cnn_tiny", "dataset=digits", words]  # fmt: skip
    with pytest.raises(UserError, match=r"dataset\.superfluous"):
        compose(run, config_dir=str(tmp_path))

"""What files say about themselves is declared, and a slip in it is answered with the nearest key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from transfer_run.backbones.declared import DESCRIBES, Family
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.about import ANY, OF_GROUP, check_about, facts
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.schema import parse_type

RUN = ("backbone=t5_tiny", "backbone.weights=random", "dataset=python_docs")


@pytest.mark.parametrize("group", ["method", "dataset", "backbone"])
def test_every_packaged_file_says_only_what_is_declared(group: str) -> None:
    found = registry.entries(group)
    assert len(found) > 20
    for entry in found:
        check_about({group: entry.content.get(group, {})}, lambda key, entry=entry: f"{entry.file}: {key}")  # type: ignore[misc]


def test_every_fact_has_a_type_and_a_sentence() -> None:
    for group in OF_GROUP:
        for key, fact in facts(group).items():
            parse_type(fact.type)
            assert len(fact.says) > 10, key


def method(folder: Path, about: str) -> Path:
    (folder / "method").mkdir(exist_ok=True)
    file = folder / "method" / "mine.yaml"
    file.write_text(
        f"# @package _global_\nmethod:\n  name: mine\n  about: {{title: Mine, {about}}}\n  depth: 1\n", encoding="utf-8"
    )
    return file


TARGET = "transfer_run.methods.tuning.full.Full"
TOY = "target: toy.Toy, family: tuning, shape: tune"


@pytest.mark.parametrize(
    ("about", "message", "near"),
    [
        (f"{TOY}, backbone: [vit]", "no key 'method.about.backbone'", "method.about.backbones"),
        (f"{TOY}, backbones: vit", "must be a list of text", None),
        ("target: toy.Toy, family: tuning, shape: tuned", "must be one of tune, stage", "tune"),
        (f"{TOY}, pretrained: 3", "must be true or false", None),
        (f"{TOY}, options: [depth]", "must be keys with values", None),
        (f"{TOY}, backbones: [vitt]", "no family of backbones 'vitt'", "vit"),
        (f"{TOY}, asks: [prefixes]", "no part of a backbone's interface 'prefixes'", "prefix"),
        (f"{TOY}, tasks: [regresion]", "no form of data set 'regresion'", "regression"),
        ("family: tuning, shape: tune", "method.about.target is missing", None),
        (f"{TOY}, makes: imagse", "no kind of artifact 'imagse'", "images"),
        (f"{TOY}, reads: {{teacher: modl}}", "no kind of artifact 'modl'", "model"),
        (f"{TOY}, paper_profile: {{dept: 1}}", "sets 'dept', which the method does not have", "depth"),
    ],
)
def test_a_slip_in_a_methods_file(tmp_path: Path, about: str, message: str, near: str | None) -> None:
    file = method(tmp_path, about)
    with pytest.raises(UserError, match=message) as caught:
        compose(["method=mine", *RUN], str(tmp_path))
    assert str(file) in caught.value.where
    assert near is None or near in caught.value.nearest


@pytest.mark.parametrize("about", ["3", "[vit]", "null"])
def test_an_about_that_is_no_group_of_keys(tmp_path: Path, about: str) -> None:
    file = method(tmp_path, "")
    file.write_text(f"# @package _global_\nmethod:\n  name: mine\n  about: {about}\n", encoding="utf-8")
    assert registry.entry("method", "mine", [tmp_path]).name == "mine"
    with pytest.raises(UserError, match=r"method\.about is a group of keys") as caught:
        compose(["method=mine", *RUN], str(tmp_path))
    assert str(file) in caught.value.where


def test_a_slip_in_a_data_sets_file(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    file = tmp_path / "dataset" / "docs.yaml"
    file.write_text(
        "# @package _global_\ndefaults: [/dataset/python_docs]\ndataset:\n  name: docs\n  about: {need_path: FILE}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=r"no key 'dataset\.about\.need_path'") as caught:
        compose(["method=full", *RUN[:2], "dataset=docs"], str(tmp_path))
    assert str(file) in caught.value.where
    assert caught.value.nearest[0] == "dataset.about.needs_path"


def test_a_slip_in_a_backbones_file(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    file = tmp_path / "backbone" / "series.yaml"
    about = "{target: series.Forecaster, read: [series], answers: [regression]}"
    file.write_text(f"# @package backbone\nname: series\nfamily: series\nabout: {about}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no key 'backbone\.about\.read'") as caught:
        compose(["method=full", "backbone=series", RUN[-1]], str(tmp_path))
    assert str(file) in caught.value.where
    assert caught.value.nearest[0] == "backbone.about.reads"


def test_a_method_may_name_a_family_of_the_users_own(tmp_path: Path) -> None:
    about = {"target": TARGET, "backbones": ["series"]}
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "series.yaml").write_text(
        "# @package backbone\nname: series\nfamily: series\nabout: {target: series.Forecaster}\n", encoding="utf-8"
    )
    check_about({"method": {"about": about}}, folders=[tmp_path])
    with pytest.raises(UserError, match="no family of backbones 'series'"):
        check_about({"method": {"about": about}})


def test_a_method_may_name_a_form_of_the_users_own() -> None:
    check_about({"method": {"about": {"target": TARGET, "tasks": ["my_form:SeveralLabels"]}}})


def test_a_family_declares_the_same_keys_in_its_own_file() -> None:
    said = {field.name for field in fields(Family)} - {"name"}
    assert set(OF_GROUP["backbone"]) == said | set(DESCRIBES) - set(ANY)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.about.backbnes=[vit]", r"method\.about\.backbnes is a fact of its file"),
        ("method.about.tasks=[regression]", r"method\.about\.tasks is a fact"),
        ("hardware.about.titel=x", r"hardware\.about\.titel is a fact"),
        ("method.about=3", r"method\.about\.title is a fact"),
        ("~method.about.family", r"method\.about\.family is a fact"),
    ],
)
def test_a_word_says_nothing_new(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose(["method=full", *RUN, word])
    assert word.lstrip("~").partition("=")[0] in caught.value.where


def test_about_describes_a_node_and_not_what_is_below_it() -> None:
    values: Any = [*RUN, "method=lora", "trainer.about.x=1"]
    with pytest.raises(UserError, match=r"trainer\.about\.x"):
        compose(values)

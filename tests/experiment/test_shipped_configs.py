"""Every config that is shipped composes, passes its own checks, and keeps the conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from transfer_run.errors import UserError
from transfer_run.experiment import registry, schema
from transfer_run.experiment.compose import GROUPS, compose
from transfer_run.experiment.fit import READS, check_fit, reads

METHOD_ABOUT = {"title", "target", "family", "shape", "backbones"}
SHAPES = {"tune", "stage", "combine", "distil", "score", "reshape"}


def shipped(group: str) -> list[str]:
    return registry.names(group)


def composed(tmp_path: Path, *words: str) -> DictConfig:
    """The config of the words; a key that the user must give is given a file that exists."""
    while True:
        try:
            return compose(words)
        except UserError as error:
            if not error.what.endswith("must be given.") or any(word.startswith(error.where) for word in words):
                raise
            words = (*words, f"{error.where}={tmp_path}")


def test_something_is_shipped_in_every_group() -> None:
    assert [group for group in GROUPS if not shipped(group)] == []


@pytest.mark.parametrize("name", shipped("method"))
def test_method(name: str, tmp_path: Path) -> None:
    """On the first pair of a small backbone and an embedded data set that it is defined for."""
    about = registry.entry("method", name).content["method"]["about"]
    assert set(about) >= METHOD_ABOUT
    assert about["shape"] in SHAPES
    assert set(about["backbones"]) <= set(READS)
    _check_paper_profile(name)
    refusals = []
    for backbone, dataset in _small_pairs(about["backbones"]):
        try:
            cfg = composed(tmp_path, f"method={name}", f"backbone={backbone}", f"dataset={dataset}")
        except UserError as error:
            refusals.append(str(error))
        else:
            assert cfg.method.name == name
            return
    raise AssertionError("\n".join(refusals))


def _check_paper_profile(name: str) -> None:
    """The paper's own memory setting sets keys that the method has, to values that they may take."""
    content = registry.entry("method", name).content
    types = schema.all_types(content, {})
    for key, value in content["method"]["about"].get("paper_profile", {}).items():
        assert schema.has(content["method"], key)
        kind = types.get(f"method.{key}") or schema.type_of(schema.flatten(content["method"])[key])
        assert kind.convert(value) == value


def _small_pairs(families: list[str]) -> list[tuple[str, str]]:
    """Tiny backbones first; a data set of each kind and form."""
    backbones = [e for e in registry.entries("backbone") if e.family in families and e.name.endswith("_tiny")]
    datasets: dict[Any, str] = {}
    for entry in registry.entries("dataset"):
        node = entry.content["dataset"]
        datasets.setdefault((reads(node), node.get("form")), entry.name)
    return [
        (b.name, name) for b in backbones for (kind, _), name in datasets.items() if kind in READS.get(b.family, {kind})
    ]


@pytest.mark.parametrize("name", shipped("backbone"))
def test_backbone(name: str) -> None:
    """Its file says what it is; it is checked against the defaults without composing a whole run for each."""
    entry = registry.entry("backbone", name)
    node = entry.content["backbone"]
    assert node["name"] == name
    assert entry.family in READS
    assert {"weights", "hub", "revision", "tokenizer", "architecture"} <= set(node)
    assert isinstance(node["architecture"], dict)
    assert ("image" in node) == ("images" in READS[entry.family])


@pytest.mark.parametrize("family", sorted(READS))
def test_a_backbone_of_every_family_composes(family: str, tmp_path: Path) -> None:
    name = next(e.name for e in registry.entries("backbone") if e.family == family)
    dataset = "digits" if "images" in READS[family] else "python_docs"
    assert compose(["method=full", f"backbone={name}", f"dataset={dataset}"]).backbone.family == family


@pytest.mark.parametrize("name", shipped("dataset"))
def test_dataset(name: str, tmp_path: Path) -> None:
    node = registry.entry("dataset", name).content["dataset"]
    common = {"name", "form", "num_labels", "label_names", "metrics", "batch_size", "path", "about"}
    assert set(node) >= common
    assert node["name"] == name
    backbone = {"images": "vit_tiny", "text": "gpt2_tiny" if node["form"] == "language_modeling" else "t5_tiny"}
    cfg = composed(tmp_path, "method=full", f"backbone={backbone[reads(node)]}", f"dataset={name}")
    assert cfg.dataset.name == name


@pytest.mark.parametrize("group", ["hardware", "optimizer", "logger", "profiler"])
def test_small_groups(group: str) -> None:
    for name in shipped(group):
        cfg = compose([f"{group}={name}"])
        assert cfg[group].name == name


@pytest.mark.parametrize("name", shipped("experiment"))
def test_experiment(name: str) -> None:
    compose([f"experiment={name}"])


def test_the_default_composes() -> None:
    check_fit(dict(compose([])))


def test_every_file_begins_with_what_it_is() -> None:
    silent = [
        str(path.relative_to(registry.config_root()))
        for path in sorted(registry.config_root().rglob("*.yaml"))
        if not any(
            line.startswith("# ") and not line.startswith("# @package") for line in path.read_text().splitlines()[:2]
        )
    ]
    assert silent == []

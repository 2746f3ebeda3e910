"""Every config that is shipped composes, passes its own checks, and keeps the conventions."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from transfer_run.backbones.declared import HAS, families, takes
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry, schema
from transfer_run.experiment.config.compatibility import check_fit, reads
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.origin import GROUPS
from transfer_run.files import read_yaml
from transfer_run.methods.build import method_class

METHOD_ABOUT = {"title", "target", "family", "shape"}
SHAPES = {"tune", "stage", "combine", "distil", "score", "reshape"}


def shipped(group: str) -> list[str]:
    return registry.names(group)


def composed(tmp_path: Path, *words: str) -> Run:
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


@cache
def plain(group: str, name: str) -> dict[str, Any]:
    """What a config's files hold, interpolations within them resolved."""
    content = OmegaConf.create(dict(registry.entry(group, name).content))
    return OmegaConf.to_container(content, resolve=True)  # type: ignore[return-value]


@pytest.mark.parametrize("name", shipped("method"))
def test_method(name: str) -> None:
    """Its options fit its keys, and some small backbone and data set fit it."""
    content = plain("method", name)
    about = content["method"]["about"]
    assert set(about) >= METHOD_ABOUT
    assert about["shape"] in SHAPES
    assert set(about.get("backbones", ())) <= set(families())
    assert set(about.get("asks", ())) <= set(HAS)
    assert content["method"]["name"] == name
    schema.check({"method": content["method"]}, {"method": content["method"]})
    _check_paper_profile(name)
    assert fitting_pair(name) is not None


@cache
def fitting_pair(method: str) -> tuple[str, str] | None:
    """A tiny backbone and a data set that the method works on."""
    about = plain("method", method)["method"]["about"]
    tiny = [family.smallest for family in families().values() if takes(about, family)]
    pairs = [(backbone, dataset) for backbone in tiny for dataset in shipped("dataset")]
    for backbone, dataset in sorted(pairs, key=lambda pair: pair[1] == "none"):  # an absence of data fits anything
        parts = (("method", method), ("backbone", backbone), ("dataset", dataset))
        nodes = {group: plain(group, name)[group] for group, name in parts}
        for form in nodes["dataset"]["about"].get("options", {}).get("form") or [nodes["dataset"]["form"]]:
            try:
                check_fit({**nodes, "dataset": {**nodes["dataset"], "form": form}})
            except UserError:
                continue
            return backbone, dataset
    return None


def _check_paper_profile(name: str) -> None:
    """The paper's own memory setting sets keys that the method has, to values that they may take."""
    content = registry.entry("method", name).content
    types = schema.all_types(content, {})
    for key, value in content["method"]["about"].get("paper_profile", {}).items():
        assert schema.has(content["method"], key)
        kind = types.get(f"method.{key}") or schema.type_of(schema.flatten(content["method"])[key])
        assert kind.convert(value) == value


@pytest.mark.parametrize("name", shipped("backbone"))
def test_backbone(name: str) -> None:
    """Its file says what it is; it is checked against the defaults without composing a whole run for each."""
    entry = registry.entry("backbone", name)
    node = entry.content["backbone"]
    assert node["name"] == name
    family = families()[entry.family]
    assert {"weights", "hub", "revision", "tokenizer", "architecture"} <= set(node)
    assert isinstance(node["architecture"], dict)
    assert ("image" in node) == ("images" in family.reads)
    schema.check({"backbone": dict(node)}, {"backbone": node}, general=general())


@pytest.mark.parametrize("family", sorted(families()))
def test_a_backbone_of_every_family_composes(family: str) -> None:
    name = next(e.name for e in registry.entries("backbone") if e.family == family)
    dataset = {"images": "digits", "series": "seasonal_series"}.get(families()[family].reads[0], "python_docs")
    assert compose(["method=full", f"backbone={name}", f"dataset={dataset}"]).config["backbone"]["family"] == family


@pytest.mark.parametrize("name", shipped("dataset"))
def test_dataset(name: str) -> None:
    node = plain("dataset", name)["dataset"]
    common = {"name", "form", "num_labels", "label_names", "metrics", "batch_size", "path", "about"}
    assert set(node) >= common
    assert node["name"] == name
    given = {key: "given" if value == "???" else value for key, value in node.items()}
    schema.check({"dataset": given}, {"dataset": node}, general=general())
    name, *words = READER[reads(node)]
    backbone = plain("backbone", name)["backbone"] | ({"tower": "both"} if words else {})
    about = {"takes": {"feature_width": "extra_width"}} if taking(node) else {}
    if node["name"] == "none":  # of merging alone
        about = {"shape": "combine"}
    check_fit({"method": {"name": "any", "about": about, **taking(node)}, "backbone": backbone, "dataset": node})


READER = {
    "images": ("vit_tiny",), "text": ("t5_tiny",),
    "pairs": ("clip_tiny", "backbone.tower=both"), "": ("vit_tiny",), "series": ("dlinear_tiny",),
}  # fmt: skip


def taking(dataset: dict[str, Any]) -> dict[str, Any]:
    """The key of a method that takes in what this dataset holds beside the text."""
    width = dataset.get("feature_width")
    return {"extra_width": width} if width else {}


def general() -> dict[str, Any]:
    return read_yaml(registry.config_root() / "options.yaml")


@pytest.mark.slow
def test_every_dataset_composes(tmp_path: Path) -> None:
    """The same through Hydra, each in a run of its own. (Every method's runs are composed by the tests of methods.)"""
    for name in shipped("dataset"):
        if name == "none":  # of merging alone, which says what it merges
            continue
        node = plain("dataset", name)["dataset"]
        reader, *more = READER[reads(node)]
        more += [f"method.{key}={value}" for key, value in taking(node).items()]
        method = "lst" if taking(node) else "full"
        composed(tmp_path, f"method={method}", f"backbone={reader}", f"dataset={name}", *more)


@pytest.mark.parametrize("group", ["hardware", "optimizer", "logger", "profiler"])
def test_small_groups(group: str) -> None:
    for name in shipped(group):
        assert compose([f"{group}={name}"]).chosen(group) == name


@pytest.mark.parametrize("name", shipped("experiment"))
def test_experiment(name: str) -> None:
    compose([f"experiment={name}"])


def test_the_default_composes() -> None:
    check_fit(compose([]).config)


def test_every_file_begins_with_what_it_is() -> None:
    silent = [
        str(path.relative_to(registry.config_root()))
        for path in sorted(registry.config_root().rglob("*.yaml"))
        if not any(
            line.startswith("# ") and not line.startswith("# @package") for line in path.read_text().splitlines()[:2]
        )
        and "\n    does: " not in path.read_text()
    ]
    assert silent == []


@pytest.mark.parametrize("name", shipped("dataset"))
def test_a_data_set_says_which_forms_it_poses(name: str) -> None:
    """One that a word could give another form would be read as what it is not."""
    node = plain("dataset", name)["dataset"]
    forms = node["about"].get("options", {}).get("form", ())
    assert node["form"] in forms


def test_what_trains_inside_says_so_truly() -> None:
    """Its class has a backward through the backbone, so that no taps could be kept."""
    about = {name: plain("method", name)["method"]["about"] for name in shipped("method")}
    inside = [name for name, said in about.items() if said.get("trains_inside")]
    assert {"full", "lora", "peft/dora", "zscl"} <= set(inside)
    for name in inside:
        assert method_class(about[name]["target"]).needs_backbone_gradient, name

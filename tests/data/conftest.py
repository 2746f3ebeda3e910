"""Composed config nodes, and where the real data are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"


@functools.cache
def _composed(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "configs"), version_base="1.3"):
        config = compose("run", overrides=list(overrides))
    nodes = [OmegaConf.to_container(config[name], resolve=True) for name in ("dataset", "backbone")]
    return nodes[0], nodes[1]


def nodes(*overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dataset and the backbone node of a composed config, free to be changed."""
    return copy.deepcopy(_composed(overrides))


def data_of(*overrides: str, seed: int = 0) -> DataModule:
    """A dataset, read."""
    data = build_data(*nodes(*overrides), seed)
    data.setup()
    return data


def real(name: str) -> str:
    """A folder of real data, or a skipped test."""
    if not (REAL / name).exists():
        pytest.skip(f"the real data {name} are not beside the repository")
    return str(REAL / name)


@pytest.fixture(scope="session")
def docs() -> DataModule:
    """python_docs for a T5 that reads bytes."""
    return data_of("dataset=python_docs", "backbone=t5_tiny")


@pytest.fixture(scope="session")
def digits() -> DataModule:
    return data_of("dataset=digits", "backbone=vit_tiny")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a small file below the test's folder."""

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write

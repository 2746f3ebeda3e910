"""Finished runs, as far as reference accuracies are read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def finished_run(folder: Path, checksum: str, accuracy: float, dataset: Any = None, **result: Any) -> Path:
    model = folder / "checkpoints" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text(json.dumps({"provenance": {"checksum": checksum}}), encoding="utf-8")
    record = {"status": "finished", "method": "full", "metrics": {"test/accuracy": accuracy}} | result
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "config.yaml").write_text(json.dumps({"dataset": dataset or {}}), encoding="utf-8")
    return folder


@pytest.fixture
def finished() -> Callable[..., Path]:
    """(folder, checksum of its first weights, accuracy, dataset node, further keys of result.json) -> the folder."""
    return finished_run

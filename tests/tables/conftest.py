"""A small table of every kind of cell, on tiny backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from transfer_run.tables import plans
from transfer_run.tables import spec as specs
from transfer_run.tables.spec import TableSpec

SMALL: dict[str, Any] = {
    "title": "A small table",
    "words": "backbone=vit_tiny backbone.weights=random dataset=digits hardware=cpu trainer.max_steps=2",
    "smoke": "dataset.batch_size=4 ~method.rank",
    "columns": {
        "memory": {"unit": "MiB", "from": "plan", "value": "memory.peak", "divide": 2**20},
        "counted": {"unit": "parameters", "from": "plan", "value": "parameters.counted"},
        "infer": {"unit": "MiB", "from": "plan", "value": "inference.peak", "divide": 2**20},
        "{}": {"each": ["a", "b"], "unit": "%", "from": "run", "value": "score", "divide": 0.01},
        "mean": {"unit": "%", "from": "mean", "of": ["a", "b"], "derived": True},
        "speed": {"unit": "images/s", "from": "none"},
    },
    "rows": [
        {"row": "full", "words": "method=full", "paper": {"memory": 20.0, "{}": [90.0, 80.0], "speed": 3}},
        {"row": "lora", "words": "method=lora method.rank=2", "recalled": ["memory"],
         "paper": {"memory": 10.0, "mean": 70}},
        {"row": "gone", "words": "method=no_such_method", "paper": {"memory": 1.0}},
        {"row": "theirs", "words": None, "note": "not built here", "paper": {"memory": 5.0}},
    ],
    "picture": {"x": "memory", "y": "mean"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def plans_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are kept for one test alone: some tests make them up."""
    monkeypatch.setattr(plans, "FOLDER", tmp_path / "plans")


@pytest.fixture
def content() -> dict[str, Any]:
    """The small table's file, to be changed."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SMALL, sort_keys=False))
    return copy


@pytest.fixture
def small(content: dict[str, Any]) -> TableSpec:
    return specs._spec("toy/small", content)


@pytest.fixture
def shipped(tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The small table where the command line finds it, by name."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(specs, "names", lambda *folders: ["toy/small"])
    monkeypatch.setattr(specs, "file_of", lambda name, *folders: file)
    return "toy/small"

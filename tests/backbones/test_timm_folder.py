"""timm's folder of a model of one channel: no warning while it is written or read, one mean and one deviation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm

from transfer_run.backbones.load import build_backbone
from transfer_run.experiment.config import registry


@pytest.mark.parametrize("name", ["vit_tiny", "cnn_tiny"])
def test_one_channel(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = {**registry.entry("backbone", name).content["backbone"], "weights": "random:0"}
    build_backbone(node).save_library(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    assert "does not match" not in caplog.text
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    assert settings["input_size"][0] == 1
    assert len(settings["mean"]) == len(settings["std"]) == 1
    assert list(model.pretrained_cfg["mean"]) == settings["mean"]

"""torchvision's MobileNetV2 under timm's names computes the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2

from transfer_run.backbones.families.cnn import CNN
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError

CONFIG = {
    "name": "mobilenetv2_100",
    "family": "cnn",
    "image": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "channels": 3},
    "architecture": {"model": "mobilenetv2_100"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in 16 bits, norms that are not those of a network that never ran."""
    place = tmp_path_factory.mktemp("torchvision")
    model = mobilenet_v2(num_classes=7)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    save_file(
        {k: v.half() if v.ndim > 1 else v.contiguous() for k, v in model.state_dict().items()},
        place / "model.safetensors",
    )
    return place


def test_same_features_and_classifier(folder: Path) -> None:
    from safetensors.torch import load_file

    theirs = mobilenet_v2(num_classes=7).eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"))
    backbone = build_backbone(CONFIG | {"weights": str(folder)}).eval()
    assert isinstance(backbone, CNN)
    images = torch.randn(2, 3, 64, 64)
    state = backbone.run(backbone.embed({"pixel_values": images}))
    pooled = backbone.pool(backbone.finish(state), state)
    torch.testing.assert_close(pooled, theirs.features(images).mean((2, 3)))
    assert backbone.source_head is not None
    weight, bias = backbone.source_head
    torch.testing.assert_close(pooled @ weight.T.float() + bias, theirs(images))
    assert {each.dtype for each in backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize("module", ["features.18.0", "features.5.conv.1.0", "features.1.conv.1"])
def test_what_is_missing_is_named(folder: Path, tmp_path: Path, module: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    tensors[f"{module}.other"] = tensors.pop(f"{module}.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as raised:
        build_backbone(CONFIG | {"weights": str(tmp_path)})
    assert re.search(r"conv_(head|dw|pw)|features", str(raised.value))

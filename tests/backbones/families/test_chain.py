"""Chains of layers: the same as torchvision's and as the words say; what a layer cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import alexnet

from transfer_run.backbones.families.chain import Chain
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs" / "backbone"


def config(name: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) | changes


def small(*layers: dict[str, Any], size: int = 8, channels: int = 3) -> dict[str, Any]:
    return {"name": "small", "family": "chain", "weights": "random:1", "image": {"size": size, "channels": channels},
            "architecture": {"layers": list(layers)}}  # fmt: skip


def features(backbone: Any, images: torch.Tensor) -> torch.Tensor:
    state = backbone.run(backbone.embed({"pixel_values": images}))
    return backbone.pool(backbone.finish(state), state)


def test_alexnet_is_torchvisions_with_its_weights(tmp_path: Path) -> None:
    theirs = alexnet(weights=None).eval()
    save_file(theirs.state_dict(), tmp_path / "alexnet.safetensors")
    ours = build_backbone(config("alexnet", weights=str(tmp_path / "alexnet.safetensors"))).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        found = features(ours, images)
        assert ours.source_head is not None
        torch.testing.assert_close(F.linear(found, *ours.source_head), theirs(images))
    assert ours.source_head[0].shape == (1000, 4096)


def test_alexnet_trains_as_torchvisions() -> None:
    """Dropout stands before the same layers: with the same random numbers the outputs are the same in train mode."""
    theirs = alexnet(weights=None).train()
    ours = build_backbone(config("alexnet")).train()
    for own, other in zip(ours.model.parameters(), theirs.parameters(), strict=False):
        own.data.copy_(other.data)
    images = torch.randn(2, 3, 224, 224)
    torch.manual_seed(3)
    expected = theirs.classifier[:-1](torch.flatten(theirs.avgpool(theirs.features(images)), 1))
    torch.manual_seed(3)
    torch.testing.assert_close(features(ours, images), expected)


def test_caffes_alexnet_has_the_papers_layers_and_initialiser() -> None:
    backbone = build_backbone(config("alexnet-caffe"), device="meta")
    shapes = [layer.shape for layer in backbone.model.layers]
    assert shapes == [(96, 27, 27), (256, 13, 13), (384, 13, 13), (384, 13, 13), (256, 6, 6), (4096,), (4096,)]
    order = [[name for name, _ in layer.named_children()] for layer in backbone.model.layers]
    assert order[0] == order[1] == ["weight", "relu", "pool", "response_norm"]  # pooling before normalisation
    assert order[4] == ["weight", "relu", "pool"]
    assert order[5] == ["flatten", "weight", "relu", "dropout"]
    assert [layer.weight.groups for layer in backbone.model.layers[:5]] == [1, 2, 1, 2, 2]
    words = config("alexnet-caffe")["architecture"]
    assert [each["std"] for each in words["layers"]] == [0.01] * 5 + [0.005] * 2
    assert [each["bias"] for each in words["layers"]] == [0, 1, 0, 1, 1, 1, 1]


def test_weights_follow_std_and_bias() -> None:
    made = build_backbone(small({"conv": 64, "kernel": 5, "std": 0.02, "bias": 1}, {"linear": 100, "std": 0.005}))
    first, second = (layer.weight for layer in made.model.layers)
    assert float(first.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert bool((first.bias == 1).all())
    assert float(second.weight.detach().std()) == pytest.approx(0.005, rel=0.05)
    assert float(second.bias.detach().std()) > 0  # PyTorch's own where none is named
    made.config["architecture"]["head"] = {"std": 0.1, "bias": 0}
    head = made.new_head(50)
    assert isinstance(head, nn.Linear)
    assert float(head.weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert bool((head.bias == 0).all())


def test_the_response_norm_is_caffes() -> None:
    """x / (1 + alpha/5 sum of squares over five channels)^beta, alpha 1e-4, beta 0.75."""
    made = build_backbone(small({"conv": 7, "kernel": 1, "response_norm": True})).eval()
    images = 50 * torch.randn(1, 3, 8, 8)
    plain = F.relu(made.model.layers[0].weight(images))
    squares = F.pad(plain.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    torch.testing.assert_close(features(made, images), (plain / (1 + 1e-4 / 5 * squares) ** 0.75).flatten(1))


def test_widths_are_those_of_the_states() -> None:
    made = build_backbone(small({"conv": 8, "pool": ["avg", 2, 2], "norm": "batch"}, {"conv": 12}, {"linear": 5}))
    state = made.embed({"pixel_values": torch.randn(2, 3, 8, 8)})
    assert (made.width("image", -1), made.grid(state)) == (state.hidden.shape[1], (3, 3))
    for index, after in enumerate(made.taps(state)):
        assert made.width("image", index) == after.hidden.shape[1]
    assert (made.feature_width, made.grid(after)) == (5, None)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([{"conv": 8, "kernal": 3}], "has no 'kernal'"),
        ([{"linear": 8, "kernel": 3}], "has no 'kernel'"),
        ([{"width": 8}], "A layer is one of conv, linear"),
        ([{"conv": 8, "linear": 8}], "A layer is one of conv, linear"),
        ([{"linear": 8}, {"conv": 8}], "behind a linear layer"),
        ([{"conv": 8, "norm": "layer"}], "no norm 'layer'"),
        ([{"conv": 8, "pool": ["mean", 2, 2]}], "pool is"),
        ([{"conv": 8, "pool": ["max", 2]}], "pool is"),
        ([{"conv": 8, "kernel": 7}, {"conv": 8, "kernel": 3}], "Nothing is left"),
    ],
)
def test_layers_that_cannot_be(layers: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Chain.from_architecture(small(*layers))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3))
    save_file({f"features.{name}": tensor for name, tensor in other.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        build_backbone(small({"conv": 8, "kernel": 3}, {"linear": 5}) | {"weights": str(tmp_path / "w.safetensors")})

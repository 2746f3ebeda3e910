"""ResNets for CIFAR: shortcuts without weights, weights in and out, the real ones where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.families.cifar_resnet import Unit
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.weights.folders import folder_backbone, folder_head
from transfer_run.backbones.weights.settings import folder_architecture
from transfer_run.errors import UserError

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
TINY = {"model_type": "cifar_resnet", "blocks": 2, "widths": [4, 6, 12], "in_chans": 1}


def tiny(**words: Any) -> dict[str, Any]:
    return {"name": "tiny", "family": "cnn", "weights": "random:3", "architecture": TINY} | words


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))


def features(backbone: Backbone, images: Tensor) -> Tensor:
    state = backbone.run(backbone.embed({"pixel_values": images}))
    return backbone.pool(backbone.finish(state), state)


def test_the_shortcut_takes_every_second_pixel_and_adds_no_weights() -> None:
    unit, x = Unit(4, 8, 2), torch.arange(64.0).view(1, 4, 4, 4)
    expected = torch.zeros(1, 8, 2, 2)
    for channel in range(4):
        for i in range(2):
            for j in range(2):
                expected[0, 2 + channel, i, j] = x[0, channel, 2 * i, 2 * j]
    assert torch.equal(unit.shortcut(x), expected)
    assert Unit(4, 4, 1).shortcut(x) is x
    assert {type(module) for module in unit.children()} == {nn.Conv2d, nn.BatchNorm2d}


def test_the_way_through_is_that_of_the_definition() -> None:
    backbone, images = build_backbone(tiny()).eval(), torch.rand(2, 1, 32, 32)
    model = backbone.model
    x = F.relu(model.bn1(model.conv1(images)))
    for stage in (model.layer1, model.layer2, model.layer3):
        for unit in stage:
            x = unit(x)
    torch.testing.assert_close(features(backbone, images), x.mean((2, 3)))
    assert [backbone.width("image", i) for i in (-1, 0, 1, 2)] == [4, 4, 6, 12]
    assert x.shape[-2:] == (8, 8)
    assert [tuple(unit.stride for unit in stage) for stage in backbone.blocks("image")] == [(1, 1), (2, 1), (2, 1)]


def test_saved_and_read_again_with_its_classifier(tmp_path: Path) -> None:
    backbone, images = build_backbone(tiny()).eval(), torch.rand(2, 1, 32, 32)
    backbone.save_library(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"linear.weight": torch.eye(3, 12), "linear.bias": torch.ones(3)}, tmp_path / "model.safetensors"
    )
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(stored | {"classes": ["a", "b", "c"]}), encoding="utf-8")

    words = {"model_type": "cifar_resnet", "in_chans": 1}  # the sizes are in the folder
    for place in (tmp_path, tmp_path / "model.safetensors"):
        config = tiny(weights=str(place), architecture=words if place.is_dir() else TINY)
        again = build_backbone(config).eval()
        assert torch.equal(features(again, images), features(backbone, images))
        assert again.source_head is not None
        assert torch.equal(again.source_head[0], torch.eye(3, 12))
        assert again.source_labels == (("a", "b", "c") if place.is_dir() else ())
    assert folder_backbone(tmp_path)["family"] == "cnn"
    assert folder_architecture(tmp_path) == {"model_type": "cifar_resnet"}
    assert folder_head(tmp_path, 12) is not None


@pytest.mark.parametrize(
    ("architecture", "told"),
    [({"model_type": "cifar_resnet"}, "blocks"), (TINY | {"depth": 20}, "unexpected keyword argument 'depth'")],
)
def test_what_cannot_be_built(architecture: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_backbone(tiny(architecture=architecture))


def test_a_timm_folder_says_how_its_images_are_read(tmp_path: Path) -> None:
    node = read("cnn_tiny") | {"weights": "random:0"}
    build_backbone(node).save_library(tmp_path)
    image = folder_backbone(tmp_path)["image"]
    assert (image["channels"], len(image["mean"])) == (1, 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data and weights are not beside the repository")
@pytest.mark.parametrize(("name", "accuracy", "loss"), [("resnet20", 0.804, 0.822), ("resnet56", 0.825, 0.886)])
def test_the_real_weights_have_their_measured_accuracy(
    name: str, accuracy: float, loss: float, cifar_test: Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
) -> None:
    folder = DATA / "weights" / f"{name}-cifar10"
    backbone = build_backbone(read(f"{name}_cifar") | {"weights": str(folder)}).eval()
    assert backbone.source_labels[:3] == ("airplane", "automobile", "bird")
    images, labels = cifar_test(read(f"{name}_cifar"))
    assert backbone.source_head is not None
    with torch.no_grad():
        logits = F.linear(torch.cat([features(backbone, part) for part in images.split(250)]), *backbone.source_head)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(accuracy, abs=1e-3)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(loss, abs=1e-3)


@pytest.fixture(scope="module")
def cifar_test() -> Callable[[dict[str, Any]], tuple[Tensor, Tensor]]:
    """The 1,000 test images as a backbone reads them, and their labels."""
    from transfer_run.data.load import build_data

    def read_test(backbone: dict[str, Any]) -> tuple[Tensor, Tensor]:
        node = yaml.safe_load((ROOT / "configs" / "dataset" / "image_folder.yaml").read_text(encoding="utf-8"))
        dataset = node["dataset"] | {"path": str(DATA / "images" / "cifar10-jpeg")}
        data = build_data(dataset, backbone, 0)
        data.setup()
        batch = next(iter(data.loader("test", batch_size=1000)))
        return batch["pixel_values"], batch["labels"]

    return read_test

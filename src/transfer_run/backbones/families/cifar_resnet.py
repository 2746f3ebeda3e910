"""Residual networks for images of 32 x 32 pixels (He et al. 2016, arXiv 1512.03385, section 4.2): ResNet-20, -56.

    3x3 convolution ─▶ 3 stages of n units, 16, 32, 64 channels, half the size in stages 2 and 3 ─▶ average ─▶ linear

No library has them: three stages, and shortcuts without weights (option A: every second pixel, zero channels added on
both sides). Tensors are named as in the widely used weights for CIFAR-10 (akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.families.cnn import CNN
from transfer_run.backbones.weights.checkpoints import fill, read_tensors
from transfer_run.backbones.weights.files import stored_config
from transfer_run.errors import UserError
from transfer_run.files import write_json

KIND = "ResNet-{} for CIFAR"
CLASSIFIER = "linear"


class Unit(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), both convolutions 3x3."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - given

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A; the channels that come new are zero, half of them on each side."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        before = self.added // 2
        return F.pad(x, (0, 0, 0, 0, before, self.added - before)) if self.added else x


class Network(nn.Module):
    """The network without its classifier.

    Args:
        blocks: units a stage, n; the network is called ResNet-(6 n + 2).
        widths: channels of the stages.
        in_chans: channels of the images.
    """

    def __init__(self, blocks: int, widths: Sequence[int], in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1, self.maxpool = nn.ReLU(), nn.Identity()
        self.stages, given = [f"layer{number + 1}" for number in range(len(widths))], widths[0]
        for number, (name, width) in enumerate(zip(self.stages, widths, strict=True)):
            strides = [1 if number == 0 else 2, *[1] * (blocks - 1)]
            first = [given, *[width] * (blocks - 1)]
            self.add_module(name, nn.Sequential(*(Unit(a, width, s) for a, s in zip(first, strides, strict=True))))
            given = width
        self.head_hidden_size = given
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_head(self, last: Tensor, pre_logits: bool = True) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return last.mean((-2, -1))


class CifarResNet(CNN):
    """The kind `cifar_resnet` of the family `cnn`. `architecture`: `blocks`, `widths`, `in_chans`; without `blocks` a
    folder's config.json says them."""

    model: Network

    @staticmethod
    def _named_stages(model: nn.Module) -> list[str]:
        assert isinstance(model, Network)
        return model.stages

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> CifarResNet:
        return cls(_network(config["architecture"]), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> CifarResNet:
        """From a folder with config.json, or a file of tensors; the classifier in it is kept as `source_head`."""
        stored = stored_config(folder) if (folder / "config.json").is_file() else {}
        said = {"blocks": stored.get("blocks_per_stage"), "widths": stored.get("widths")}
        architecture = {**{key: value for key, value in said.items() if value}, **config["architecture"]}
        backbone = cls.from_architecture({**config, "architecture": architecture})
        tensors = read_tensors(folder)
        weight, bias = tensors.pop(f"{CLASSIFIER}.weight", None), tensors.pop(f"{CLASSIFIER}.bias", None)
        fill(backbone.model, tensors, folder)
        if weight is not None and bias is not None:
            backbone.source_head = (weight, bias)
            backbone.source_labels = tuple(map(str, stored.get("classes") or ()))
        return backbone

    def save_library(self, folder: Path) -> None:
        """As `from_folder` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        widths = self._widths[1:]
        blocks = len(self.model.get_submodule(self._stages[0]))  # type: ignore[arg-type]
        kind = KIND.format(2 * blocks * len(widths) + 2)
        write_json(folder / "config.json", {"architecture": kind, "blocks_per_stage": blocks, "widths": widths})
        tensors = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _network(architecture: Mapping[str, Any]) -> Network:
    words = {key: value for key, value in architecture.items() if key != "model_type"}
    try:
        return Network(**words)
    except TypeError as error:
        raise UserError(
            f"The network cannot be built: {error}.",
            where=f"backbone.architecture: {', '.join(words) or 'nothing'}",
            remedy="give blocks (units a stage) and widths (channels of the stages); in_chans: channels of the images",
        ) from error

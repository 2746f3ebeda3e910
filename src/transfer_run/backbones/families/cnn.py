"""Convolutional networks of timm (ResNet, EfficientNet, MobileNetV3 and their kin): stem, stages, head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.images import refuse_channels
from transfer_run.backbones.weights.checkpoints import new_timm, read_timm
from transfer_run.backbones.weights.torchvision_names import as_in_timm
from transfer_run.errors import UserError


class CNN(Backbone):
    """Blocks are the network's stages, taps are feature maps (B, C, H, W) whose C, H and W change from stage to stage.

    embed: the stem. finish: EfficientNet's last convolution, nothing elsewhere. pool: global average, and in
    MobileNetV3 the layer behind it.
    """

    family = "cnn"
    stacks = ("image",)
    pre_norm = False
    model: Any

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self._stages = self._named_stages(model)
        self._widths = self._measured_widths()

    @staticmethod
    def _named_stages(model: nn.Module) -> list[str]:
        """Where the stages of a residual network are; empty where `model.blocks` has them.

        Raises:
            UserError: a model that is no chain of stages.
        """
        if not isinstance(model, ResNet | EfficientNet | MobileNetV3):
            raise UserError(
                f"timm's {type(model).__name__} is not known as a chain of stages.",
                where="backbone.architecture.model",
                remedy="choose a ResNet, ResNeXt, EfficientNet or MobileNet of timm",
            )
        return [f"layer{i}" for i in range(1, 5)] if isinstance(model, ResNet) else []

    def _measured_widths(self) -> list[int]:
        """Channels after the stem and after each stage, from the convolutions' shapes."""
        stem = self.model.conv1 if self._stages else self.model.conv_stem
        convolutions = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
        self._channels = convolutions[0].in_channels
        widths = [convolutions[-1].out_channels]
        for stage in self.blocks("image"):
            unit: Any = list(stage.children())[-1]
            norms = [m for m in unit.children() if isinstance(m, nn.BatchNorm2d)]
            widths.append(norms[-1].num_features)
        return widths

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> CNN:
        return cls(new_timm(config["architecture"]), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> CNN:
        backbone = cls.from_architecture(config)
        backbone.source_head = read_timm(backbone.model, folder, as_in_timm)
        return backbone

    # ---- architecture
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return [self.model.get_submodule(name) for name in self._stages] or self.model.blocks

    def width(self, stack: str, index: int | None = None) -> int:
        return self._widths[-1 if index is None else index + 1]

    @property
    def feature_width(self) -> int:
        return self.model.head_hidden_size

    def finish_modules(self, stack: str) -> list[nn.Module]:
        names = ("conv_head", "bn2", "norm_head")
        found = [] if self._stages else [getattr(self.model, name, None) for name in names]
        return [module for module in found if module is not None]

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        model, images = self.model, batch["pixel_values"]
        refuse_channels(images, self._channels)
        if self._stages:
            return State(model.maxpool(model.act1(model.bn1(model.conv1(images)))), "image")
        return State(model.bn1(model.conv_stem(images)), "image")

    def _step(self, state: State) -> State:
        return replace(state, hidden=self.blocks("image")[state.index](state.hidden))

    def finish(self, state: State) -> Tensor:
        """(B, C, H, W)."""
        if isinstance(self.model, EfficientNet):
            return self.model.bn2(self.model.conv_head(state.hidden))
        return state.hidden

    def grid(self, state: State) -> tuple[int, int]:
        return state.hidden.shape[-2], state.hidden.shape[-1]

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        """(B, C, H, W) -> (B, feature_width), before the classifier, as timm's `forward_head(pre_logits=True)`."""
        return torch.flatten(self.model.forward_head(last, pre_logits=True), 1)

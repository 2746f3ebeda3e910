"""Plain chains of layers, convolutional first and fully connected behind: AlexNet, ConvNets, perceptrons.

    pixels ── layer 0 ──> tap zero ── layer 1 ── ... ── layer L-2 ──> flattened ── head (layer L-1)

The words of the backbone's config are the network (`architecture.layers`, one entry a layer), so that a small one of
one's own needs no code. A layer with weights is a block, the first one the embedding: what "How transferable are
features" (arXiv 1411.1792) cuts between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.images import refuse_channels
from transfer_run.backbones.weights.checkpoints import fill, read_tensors
from transfer_run.errors import UserError, nearest_names

NORMS = ("batch", "instance")
POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
ANY = ("norm", "pool", "response_norm", "dropout", "std", "bias")
KEYS = {"conv": ("kernel", "stride", "padding", "groups", *ANY), "linear": ("dropout", "std", "bias")}
WHERE = "backbone.architecture.layers"


class Layer(nn.Sequential):
    """weight -> norm -> ReLU -> pooling -> response normalisation -> dropout, what is not asked for left out.

    Args:
        words: one of `conv: CHANNELS` (with `kernel`, `stride`, `padding`, `groups`) and `linear: WIDTH`, and
            `norm` (batch | instance: one group a channel, with weights, no running statistics),
            `pool: [max | avg, size, stride]`, `response_norm: true` (across 5 channels, alpha 1e-4, beta 0.75, as
            Caffe), `dropout` (share), `std` and `bias` (Gaussian weights and constant biases; left out: PyTorch's own).
        shape: of its input, (C, H, W) or (D,).

    Attributes:
        shape: of its output.
    """

    def __init__(self, words: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        super().__init__()
        weight: nn.Conv2d | nn.Linear
        if _kind(words) == "conv":
            weight, self.shape = self._convolution(words, shape)
        else:
            weight, self.shape = nn.Linear(_entries(shape), int(words["linear"])), (int(words["linear"]),)
            self.add_module("flatten", nn.Flatten())
        initialise(weight, words)
        self.add_module("weight", weight)
        if words.get("norm"):
            channels = self.shape[0]
            batch = words["norm"] == "batch"
            self.add_module("norm", nn.BatchNorm2d(channels) if batch else nn.GroupNorm(channels, channels))
        self.add_module("relu", nn.ReLU())
        if words.get("pool"):
            name, size, stride = words["pool"]
            self.shape = (self.shape[0], *((side - size) // stride + 1 for side in self.shape[1:]))
            self.add_module("pool", POOLS[name](size, stride))
        if words.get("response_norm"):
            self.add_module("response_norm", nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75))
        if words.get("dropout"):
            self.add_module("dropout", nn.Dropout(float(words["dropout"])))
        if min(self.shape) < 1:
            raise UserError(
                f"Nothing is left of an image of {shape[1:]} pixels behind {dict(words)}.",
                where=WHERE,
                remedy="fewer or smaller poolings, or a larger backbone.image.size",
            )

    @staticmethod
    def _convolution(words: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[nn.Conv2d, tuple[int, ...]]:
        if len(shape) == 1:
            raise UserError("A convolution stands behind a linear layer.", where=WHERE, remedy="convolutions first")
        channels, kernel = int(words["conv"]), int(words.get("kernel", 3))
        stride, padding = int(words.get("stride", 1)), int(words.get("padding", 0))
        made = nn.Conv2d(shape[0], channels, kernel, stride, padding, groups=int(words.get("groups", 1)))
        return made, (channels, *((side + 2 * padding - kernel) // stride + 1 for side in shape[1:]))


class Layers(nn.Module):
    """The layers of a chain; whoever holds it runs them one by one."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Chain(Backbone):
    """embed: the first layer. Blocks: the others. finish: nothing. pool: what is left, flattened.

    Weights of torchvision's networks of this form (`alexnet`) are read by their order, from a file or a folder: as many
    weights and biases, of the same shapes.
    """

    family = "chain"
    stacks = ("image",)
    pre_norm = False
    model: Layers

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> Chain:
        image, shapes = config["image"], config["architecture"]
        sides = image["size"] if isinstance(image["size"], list) else [image["size"]] * 2
        shape: tuple[int, ...] = (int(image["channels"]), *map(int, sides))
        layers = []
        for words in shapes["layers"]:
            layers.append(Layer(words, shape))
            shape = layers[-1].shape
        return cls(Layers(layers), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> Chain:
        backbone, tensors = cls.from_architecture(config), read_tensors(folder)
        names = [name for name, _ in backbone.model.named_parameters()]
        if tensors.keys() != set(names) and any(name.startswith("features.") for name in tensors):
            whole = _in_order(tensors)
            rest = [name for name in whole[len(names) :] if name.startswith("classifier.")]
            if len(rest) == 2:
                backbone.source_head = (tensors[rest[0]], tensors[rest[1]])
            renamed = dict(zip(names, whole, strict=False))
            tensors = {name: tensors[other] for name, other in renamed.items()}
        fill(backbone.model, tensors, folder)
        return backbone

    # ---- architecture
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return list(self.model.layers)[1:]

    def width(self, stack: str, index: int | None = None) -> int:
        return self._shape(-1 if index is None else index + 1)[0]

    @property
    def feature_width(self) -> int:
        return _entries(self._shape(-1))

    def _shape(self, index: int) -> tuple[int, ...]:
        layer = self.model.layers[index]
        assert isinstance(layer, Layer)
        return layer.shape

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        images = batch["pixel_values"]
        refuse_channels(images, int(self.config["image"]["channels"]))
        return State(self.model.layers[0](images), "image")

    def _step(self, state: State) -> State:
        return replace(state, hidden=self.blocks("image")[state.index](state.hidden))

    def finish(self, state: State) -> Tensor:
        """(B, C, H, W), or (B, D) behind a linear layer."""
        return state.hidden

    def grid(self, state: State) -> tuple[int, int] | None:
        return (state.hidden.shape[-2], state.hidden.shape[-1]) if state.hidden.ndim == 4 else None

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        return last.flatten(1)

    def new_head(self, outputs: int) -> nn.Module:
        """Linear, with weights as `architecture.head` (`std`, `bias`) says."""
        head = nn.Linear(self.feature_width, outputs)
        initialise(head, self.config["architecture"].get("head") or {})
        return head


def initialise(weight: nn.Conv2d | nn.Linear, words: Mapping[str, Any]) -> None:
    """Gaussian weights of `std` and constant biases of `bias`, where the words name one; else they stay."""
    if words.get("std") is not None:
        nn.init.normal_(weight.weight, std=float(words["std"]))
    if weight.bias is not None and words.get("bias") is not None:
        nn.init.constant_(weight.bias, float(words["bias"]))


def _entries(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names like `features.10.bias`, in the order of the layers: weight before bias."""

    def place(name: str) -> tuple[bool, list[int], bool]:
        part, *rest = name.split(".")
        return part == "classifier", [int(each) for each in rest if each.isdigit()], name.endswith("bias")

    return sorted(tensors, key=place)


def _kind(words: Mapping[str, Any]) -> str:
    """`conv` or `linear`.

    Raises:
        UserError: neither or both, a key that such a layer does not have, or a norm or pooling that does not exist.
    """
    kinds = [kind for kind in KEYS if kind in words]
    if len(kinds) != 1:
        raise UserError(f"A layer is one of {', '.join(KEYS)}: {dict(words)}.", where=WHERE, remedy="{conv: CHANNELS}")
    known = KEYS[kinds[0]]
    for key in words:
        if key not in (*kinds, *known):
            near = nearest_names(str(key), known) or list(known)
            raise UserError(f"A layer `{kinds[0]}` has no {key!r}.", where=WHERE, nearest=near)
    norm, pool = words.get("norm"), words.get("pool")
    if norm is not None and norm not in NORMS:
        raise UserError(f"There is no norm {norm!r}.", where=WHERE, nearest=list(NORMS))
    if pool is not None and (len(pool) != 3 or pool[0] not in POOLS):
        raise UserError(f"pool is [max | avg, size, stride], not {pool}.", where=WHERE, remedy="pool: [max, 2, 2]")
    return kinds[0]

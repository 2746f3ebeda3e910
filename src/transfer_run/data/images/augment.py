"""Random views of images for training: torchvision's transforms and timm's policies, drawn by (seed, epoch, row).

image ── converted ── resized, or random_resized_crop ── operations ── tensor, normalised ── random_erasing
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transfer_run.data.images.operations import FIRST, KEY, OPERATIONS, operations
from transfer_run.data.images.transform import Transform, image_node
from transfer_run.errors import UserError

View = Callable[[Any], Any]
NOISE = "gaussian_noise"
SOMETIMES = ("gaussian_blur", NOISE)
"""What torchvision does to every image, and `p` to a share of them."""
ON_TENSORS = ("random_erasing",)
"""What works on normalised pixels: what is erased gets the mean colour, 0."""

_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, NotImplementedError, RuntimeError)
"""How the libraries answer arguments that do not suit them."""


class Augment:
    """What `dataset.augment` names, built once.

    Args:
        words: the operations, see `operations.py`.
        transform: of evaluation; it says the size, the channels and how pixels are normalised.
        interpolation: of `random_resized_crop`, the backbone's own.

    Raises:
        UserError: an argument that the library refuses, or that does not suit images of this size.
    """

    def __init__(self, words: Sequence[str], transform: Transform, interpolation: str) -> None:
        self.transform = transform
        self.interpolation = interpolation
        named = operations(words)
        built = [(name, self._built(name, arguments, words[at])) for at, (name, arguments) in enumerate(named)]
        self.crops = bool(named) and named[0][0] == FIRST
        self.before = [view for name, view in built if name not in ON_TENSORS]
        self.after = [view for name, view in built if name in ON_TENSORS]

    def __call__(self, image: Image.Image, key: tuple[int, ...]) -> Tensor:
        """A view (channels, height, width) of a converted image; equal keys draw equal views, wherever and whenever."""
        with drawn(key):
            image = image if self.crops else self.transform.resize(image)
            for view in self.before:
                image = view(image)
            pixels = self.transform.normalise(image)
            for view in self.after:
                pixels = view(pixels)
        return pixels

    def _built(self, name: str, arguments: dict[str, Any], words: str) -> View:
        try:
            view = self._of_timm(arguments["policy"]) if name == "timm" else self._of_torchvision(name, arguments)
            self._try(name, view)
            return view
        except _REFUSALS as error:
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
            raise UserError(
                f"{name} cannot be made like this: {reason}.",
                where=f"{KEY}: {words}",
                remedy=f"its arguments are those of {OPERATIONS[name].target or 'timm.data.auto_augment'}",
            ) from error

    def _try(self, name: str, view: View) -> None:
        """Some views of a grey image, so that what no image of this size allows shows before any data are read."""
        mode = "L" if self.transform.channels == 1 else "RGB"
        blank = Image.new(mode, (self.transform.width, self.transform.height), "grey")
        for number in range(4):
            with drawn((number,)):
                view(self.transform.normalise(blank) if name in ON_TENSORS else blank)

    def _of_torchvision(self, name: str, arguments: dict[str, Any]) -> View:
        from torchvision.transforms import InterpolationMode, v2  # a second and more: only where images are augmented

        size = [self.transform.height, self.transform.width]
        more: dict[str, Any] = {}
        if name == FIRST:
            more = {"size": size, "interpolation": InterpolationMode(self.interpolation)}
        elif name == "random_crop":
            more = {"size": size}
        elif name == "auto_augment" and "policy" in arguments:
            more = {"policy": v2.AutoAugmentPolicy(arguments["policy"])}
        if name in SOMETIMES:
            own = {key: value for key, value in arguments.items() if key != "p"}
            return self._sometimes(getattr(v2, OPERATIONS[name].target)(**own), name, arguments.get("p", 1.0))
        view: View = getattr(v2, OPERATIONS[name].target)(**{**arguments, **more})
        return view

    def _sometimes(self, view: View, name: str, p: float) -> View:
        """A view that is taken of a share `p` of the images; noise is added to numbers, and they are pixels again."""
        from torchvision.transforms import v2

        steps = [view]
        if name == NOISE:
            there = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
            steps = [*there, view, v2.ToDtype(torch.uint8, scale=True), v2.ToPILImage()]
        taken: View = v2.RandomApply(steps, p)
        return taken

    def _of_timm(self, policy: str) -> View:
        """A policy by timm's own name; its moves and colours are those of timm's training pipeline."""
        from timm.data import auto_augment as timm

        mean = np.broadcast_to(self.transform.mean, self.transform.channels)
        colour = tuple(min(255, round(255 * float(value))) for value in mean)
        moves = int(min(self.transform.height, self.transform.width) * 0.45)
        hparams = {"translate_const": moves, "img_mean": colour if len(colour) > 1 else colour[0]}
        if policy.startswith("rand"):
            view: View = timm.rand_augment_transform(policy, hparams)
        elif policy.startswith("augmix"):
            view = timm.augment_and_mix_transform(policy, {**hparams, "translate_pct": 0.3})
        else:
            view = timm.auto_augment_transform(policy, hparams)
        return view


def build_augment(dataset: Mapping[str, Any], backbone: Mapping[str, Any], transform: Transform) -> Augment | None:
    """What `dataset.augment` names; None where it names nothing."""
    words = dataset.get("augment")
    return Augment(words, transform, image_node(dataset, backbone)["interpolation"]) if words else None


@contextmanager
def drawn(key: tuple[int, ...]) -> Iterator[None]:
    """All three random generators seeded by `key` while it lasts (torchvision draws from PyTorch's, timm from Python's
    and NumPy's), and afterwards as they were: neither dropout nor anything else sees that there was a draw."""
    words = np.random.SeedSequence(key).generate_state(4, np.uint32)
    own, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))  # a GPU's own stays as it is
        np.random.seed(words)
        random.seed(int(words[2]) << 32 | int(words[3]))
        yield
    finally:
        torch.set_rng_state(own)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

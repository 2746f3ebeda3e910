"""`dataset.augment`: which operations there are, and what they take. Imports nothing heavy: words are checked with it.

    dataset.augment='["random_resized_crop scale=[0.5,1]",horizontal_flip,"timm policy=rand-m9-mstd0.5-inc1"]'

They are torchvision's (transforms.v2) and timm's ready policies, in the order in which they are named. The image that
they see has the backbone's size already; `random_resized_crop`, which stands first, takes the place of resizing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transfer_run.errors import UserError, nearest_names
from transfer_run.words import named

KEY = "dataset.augment"


class Operation(NamedTuple):
    """What one name stands for.

    Attributes:
        target: class in `torchvision.transforms.v2`; empty: a policy of timm.
        arguments: those of the class that the words may set.
        needs: those that must be set.
        defaults: arguments where the words set none.
    """

    target: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}


FIRST = "random_resized_crop"
OPERATIONS = {
    FIRST: Operation("RandomResizedCrop", ("scale", "ratio")),
    "random_crop": Operation("RandomCrop", ("padding", "padding_mode"), ("padding",)),
    "horizontal_flip": Operation("RandomHorizontalFlip", ("p",)),
    "vertical_flip": Operation("RandomVerticalFlip", ("p",)),
    "rotation": Operation("RandomRotation", ("degrees",), ("degrees",)),
    "affine": Operation("RandomAffine", ("degrees", "translate", "scale", "shear"), ("degrees",)),
    "perspective": Operation("RandomPerspective", ("distortion_scale", "p")),
    "elastic": Operation("ElasticTransform", ("alpha", "sigma")),
    "color_jitter": Operation(
        "ColorJitter",
        ("brightness", "contrast", "saturation", "hue"),
        defaults={"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},  # timm's; without any it does nothing
    ),
    "grayscale": Operation("RandomGrayscale", ("p",)),
    "gaussian_blur": Operation("GaussianBlur", ("kernel_size", "sigma", "p"), ("kernel_size",)),
    "gaussian_noise": Operation("GaussianNoise", ("mean", "sigma", "p")),  # of pixels from 0 to 1
    "solarize": Operation("RandomSolarize", ("threshold", "p"), ("threshold",)),
    "posterize": Operation("RandomPosterize", ("bits", "p"), ("bits",)),
    "equalize": Operation("RandomEqualize", ("p",)),
    "autocontrast": Operation("RandomAutocontrast", ("p",)),
    "invert": Operation("RandomInvert", ("p",)),
    "sharpness": Operation("RandomAdjustSharpness", ("sharpness_factor", "p"), ("sharpness_factor",)),
    "auto_augment": Operation("AutoAugment", ("policy",)),
    "rand_augment": Operation("RandAugment", ("num_ops", "magnitude", "num_magnitude_bins")),
    "trivial_augment": Operation("TrivialAugmentWide", ("num_magnitude_bins",)),
    "augmix": Operation("AugMix", ("severity", "mixture_width", "chain_depth", "alpha", "all_ops")),
    "random_erasing": Operation("RandomErasing", ("p", "scale", "ratio", "value")),
    "timm": Operation("", ("policy",), ("policy",)),
}
BOUNDS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "p": (float, 0, 1),
    "distortion_scale": (float, 0, 1),
    "threshold": (float, 0, 255),
    "sharpness_factor": (float, 0, float("inf")),
    "bits": (int, 0, 8),
    "num_ops": (int, 1, float("inf")),
    "magnitude": (int, 0, float("inf")),
    "num_magnitude_bins": (int, 2, float("inf")),
    "severity": (int, 1, 10),
    "mixture_width": (int, 1, float("inf")),
}
"""Arguments that are one number: whole or not, from, to. The libraries take some others without a word: a negative
magnitude counts from the strongest one down, no operations change nothing. What is not here, they check."""
MIXING = ("mixup", "cutmix")
"""Not here: they join rows of a batch, so that a result would depend on how many devices share it."""


def operations(words: Sequence[str], key: str = KEY) -> list[tuple[str, dict[str, Any]]]:
    """The operations that `dataset.augment` names, in order, with the arguments that are set.

    Args:
        key: where the words stand, for an error.

    Raises:
        UserError: a name or an argument that does not exist, one that is missing, or a crop that does not stand first.
    """
    found = []
    for number, text in enumerate(words):
        where = f"{key}[{number}]: {text}"
        name, arguments = named(text, where, "an operation", "random_resized_crop scale=[0.5,1]")
        _check(name, arguments, where)
        if name == FIRST and number:
            raise UserError(
                f"{FIRST} cuts from the image before it is resized.", where=where, remedy=f"name {FIRST} first"
            )
        found.append((name, arguments or dict(OPERATIONS[name].defaults)))
    return found


def _check(name: str, arguments: Mapping[str, Any], where: str) -> None:
    if name in MIXING:
        raise UserError(
            f"{name} joins rows of a batch and is not offered: its result would depend on the number of devices.",
            where=where,
            remedy="dataset.label_smoothing softens labels; random_erasing and augmix change single images",
        )
    if name not in OPERATIONS:
        raise UserError(
            f"There is no operation {name!r}.",
            where=where,
            nearest=[key for key in OPERATIONS if name in key] or nearest_names(name, OPERATIONS) or sorted(OPERATIONS),
        )
    operation = OPERATIONS[name]
    for key in arguments:
        if key not in operation.arguments:
            raise UserError(
                f"{name} has no argument {key!r}.",
                where=where,
                nearest=nearest_names(key, operation.arguments) or list(operation.arguments),
            )
        _check_number(name, key, arguments[key], where)
    missing = [key for key in operation.needs if key not in arguments]
    if missing:
        raise UserError(f"{name} needs {missing[0]}.", where=where, remedy=f'write "{name} {missing[0]}=VALUE"')


def _check_number(name: str, key: str, value: Any, where: str) -> None:
    if key not in BOUNDS:
        return
    kind, low, high = BOUNDS[key]
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        span = f"of at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise UserError(f"{key} of {name} must be {what} {span}, not {value!r}.", where=where)

"""Weights of torchvision's MobileNetV2 for timm's: the same network, its modules under other names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

DEPTHWISE = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
"""The first block, which widens nothing."""
INVERTED = {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2", "conv.2": "conv_pwl",
            "conv.3": "bn3"}  # fmt: skip
ENDS = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2",
        "classifier.1": "classifier"}  # fmt: skip
STAGES = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of each stage (Sandler et al. 2018, table 2)."""


def as_in_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under timm's names; any others as they are."""
    if "features.0.0.weight" not in tensors or "features.18.0.weight" not in tensors:
        return dict(tensors)
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{kind}"
    block = re.fullmatch(r"features\.(\d+)\.(conv\..+)", module)
    if block is None:
        return name  # which then is one too many, and said to be
    index, stage = int(block[1]) - 1, 0
    while stage < len(STAGES) - 1 and index >= STAGES[stage]:
        index, stage = index - STAGES[stage], stage + 1
    known = INVERTED if stage else DEPTHWISE
    return f"blocks.{stage}.{index}.{known.get(block[2], block[2])}.{kind}"

"""A safetensors file read tensor by tensor: while a model is filled from it, one tensor is there twice, not all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from transfer_run.backbones.weights.checkpoints import readable


class StoredTensors:
    """What a file holds by name.

    Args:
        file: of safetensors.

    Attributes:
        shapes: of all its tensors.

    Raises:
        UserError: it is not there or damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with readable(file), safe_open(file, framework="pt") as opened:
            self.shapes = {name: torch.Size(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; hold it no longer than it is needed."""
        with readable(self.file), safe_open(self.file, framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
            return found

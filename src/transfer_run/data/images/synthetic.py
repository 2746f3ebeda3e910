"""A synthetic training set as a file: what a run distilled, and what later runs read.

synthetic.safetensors     images (n, C, H, W) float32, of pixels in 0..1 as far as they stay there: neither cut nor
                          rounded; labels (n,) int64; metadata: classes, the names of the labels
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.files import written_whole

FILE = "synthetic.safetensors"


@dataclass(frozen=True)
class Synthetic:
    """A synthetic set: images (n, C, H, W) in pixels, labels (n,), the classes' names in the order of the labels."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def write(self, path: Path) -> None:
        tensors = {"images": self.images.float().cpu().contiguous(), "labels": self.labels.cpu().contiguous()}
        with written_whole(path) as partial:  # one entry of metadata: several have no order
            save_file(tensors, partial, metadata={"classes": json.dumps(list(self.classes))})

    @classmethod
    def read(cls, path: Path) -> Synthetic:
        """Read a file, or the one in a folder.

        Raises:
            UserError: there is none, or it holds something else.
        """
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"There is no synthetic set ({FILE}).", where=str(path), remedy="name the folder of a run that made one"
            )
        try:
            with safe_open(file, framework="pt") as stored:
                images, labels = stored.get_tensor("images"), stored.get_tensor("labels")
                classes = json.loads((stored.metadata() or {})["classes"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"The synthetic set cannot be read: {error}.",
                where=str(file),
                remedy="images (n, C, H, W), labels (n,), and the classes' names in the metadata",
            ) from error
        if images.dim() != 4 or labels.shape != images.shape[:1]:
            raise UserError(
                f"The synthetic set holds images {list(images.shape)} and labels {list(labels.shape)}.",
                where=str(file),
                remedy="images (n, C, H, W), labels (n,)",
            )
        return cls(images, labels, tuple(classes))

"""DARE's first step: drop most of a task vector at random and rescale the rest (Yu et al., ICML 2024, section 3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.stream import Piece

_DRAWS_A_STEP = 4  # 64-bit numbers that one count of the generator gives


@dataclass(frozen=True)
class Drop:
    """tau <- Bernoulli(1 - p) mask * tau / (1 - p), each entry for itself.

    The generator counts: element j of tensor t in model i has one number, whatever is drawn before it, so the mask does
    not depend on the piece size or the order of the work.

    Args:
        rate: p, the share dropped, 0 <= p < 1.
        seed: of all masks.
    """

    rate: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(
                f"A drop rate of {self.rate} leaves nothing.",
                where="method.drop_rate",
                remedy="0 to below 1, usually 0.9",
            )

    def __call__(self, change: Tensor, piece: Piece, model: int) -> Tensor:
        """The change (flat, at `piece`, of model number `model`) dropped and rescaled in place."""
        if self.rate == 0:
            return change
        generator = np.random.Philox(key=self._key(piece.name, model))
        generator.advance(piece.start // (2 * _DRAWS_A_STEP))  # pieces begin at a multiple of BLOCK
        drawn = np.random.Generator(generator).random(change.numel(), dtype=np.float32)
        kept = torch.from_numpy(drawn) >= self.rate
        return change.mul_(kept).div_(1 - self.rate)

    def _key(self, name: str, model: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {model} {name}".encode()).digest()[:16], "little")

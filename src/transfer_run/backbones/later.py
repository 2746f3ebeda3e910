"""Vocabulary logits that are made when the loss asks for them, some tokens at a time, and made again in backward.

    hidden (N, D) ──> a chunk's logits (n, V) ──> sum of its cross-entropy      kept: hidden, and a number a chunk
                      made again in backward, the chunk alone

The logits of all tokens (N, V), their float32 copy and their gradient are most of the peak where V is 100,000 and more.
The loss is the same sum in another order (`methods/entropy.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

from torch import Tensor

from transfer_run.errors import UserError


class Later:
    """Stands for logits (..., V) where a method hands them to its task's loss; whoever reads it otherwise is refused.

    Args:
        last: the finished hidden state (..., D).
        words: the language head.
    """

    def __init__(self, last: Tensor, words: Callable[[Tensor], Tensor]) -> None:
        self.last, self.words = last, words

    def __getitem__(self, places: Any) -> Later:
        return Later(self.last[places], self.words)

    def __getattr__(self, name: str) -> NoReturn:
        raise _reads_them()

    @classmethod
    def __torch_function__(cls, *call: Any, **more: Any) -> NoReturn:
        raise _reads_them()


def later(last: Tensor, words: Callable[[Tensor], Tensor]) -> Tensor:
    """A `Later`, for the eyes of whoever expects logits."""
    return cast(Tensor, Later(last, words))


def _reads_them() -> UserError:
    return UserError(
        "The method reads the logits of all tokens by itself, so they cannot be made a chunk at a time.",
        where="hardware.loss_chunk",
        remedy="hardware.loss_chunk=null",
    )

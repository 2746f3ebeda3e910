"""A model's answers as words, for a table of them: what is right, what was answered, how sure of it the model was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Answer(NamedTuple):
    """One row's answer; empty where there is none."""

    label: str
    prediction: str
    probability: str = ""


def shown(value: float) -> str:
    """A probability or a value as a table shows it."""
    return "" if value != value else f"{value:.6g}"


def named(classes: Tensor, names: Sequence[str]) -> list[str]:
    """The names of class numbers (B,): the number where it has none, nothing for a negative one."""
    return [(names[n] if n < len(names) else str(n)) if n >= 0 else "" for n in classes.tolist()]


def probabilities(logits: Tensor | None, classes: Tensor) -> list[str]:
    """The probability of each answered class (B,) under logits (B, C); empty where no such logits were made."""
    if logits is None or logits.ndim != 2 or len(logits) != len(classes) or bool((classes >= logits.shape[1]).any()):
        return [""] * len(classes)
    chances = torch.softmax(logits.float(), -1).gather(1, classes.clamp(min=0).unsqueeze(1)).squeeze(1)
    return [shown(chance) for chance in chances.tolist()]

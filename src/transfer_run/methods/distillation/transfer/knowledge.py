"""What one trained model knows that another does not: their answers to the same samples, compared pair by pair.

    positive flip of (teacher, student)    the teacher is right and the student wrong
    negative flip                          the other way round
    transfer rate                          share of the positive flips that the student gets right afterwards

Roth et al., ICLR 2024, arXiv 2310.17653, section 3. The answers are kept in a file, so that a run that goes on still
knows what was known before it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.files import written_whole

Counts = NDArray[np.int64]
Right = NDArray[np.bool_]
SHARES = (2, 5, 20, 50, 100)
"""Per cent of the positive flips that the classes with most of them hold together."""


@dataclass(frozen=True)
class Answers:
    """What the models of a pool say.

    Attributes:
        names: of the models.
        said: (M, N) class numbers.
        sure: (M, N) the largest probability.
        labels: (N,) right ones; samples without a label are in none of these.
    """

    names: tuple[str, ...]
    said: Counts
    sure: NDArray[np.float32]
    labels: Counts

    @property
    def right(self) -> Right:
        """(M, N)."""
        return self.said == self.labels

    def write(self, path: Path) -> None:
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez(file, names=np.array(self.names), said=self.said, sure=self.sure, labels=self.labels)

    @classmethod
    def read(cls, path: Path) -> Answers:
        with np.load(path, allow_pickle=False) as file:
            return cls(tuple(map(str, file["names"])), file["said"], file["sure"], file["labels"])


@torch.no_grad()
def answers(models: Mapping[str, Callable[[Batch], Tensor]], batches: Iterable[Batch]) -> Answers:
    """One pass of all models, from batch to logits (B, C), over the same samples."""
    said: list[Tensor] = []
    sure: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        known = batch["labels"] >= 0
        found = torch.stack([model(batch).float().softmax(-1)[known] for model in models.values()])
        said.append(found.argmax(-1).cpu())
        sure.append(found.amax(-1).cpu())
        labels.append(batch["labels"][known].cpu())
    return Answers(tuple(models), torch.cat(said, 1).numpy(), torch.cat(sure, 1).numpy(), torch.cat(labels).numpy())


def only(one: Right, other: Right) -> Right:
    """Where one is right and the other wrong (N,)."""
    return one & ~other


def pairs(right: Right) -> NDArray[np.float64]:
    """(M, M): in row t, column s the share of samples that t gets right and s wrong: positive flips of teacher t."""
    return np.stack([[float(only(t, s).mean()) for s in right] for t in right])


def by_class(samples: Right, labels: Counts, classes: int) -> Counts:
    """How many of the samples (N,) are of each class (C,)."""
    return np.bincount(labels[samples], minlength=classes).astype(np.int64)


def entropy(counts: Counts) -> float:
    """Of the histogram, in nats; 0 of an empty one."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def leading(counts: Counts, percent: float) -> Counts:
    """The fewest classes that hold so many per cent of the counts together, most first."""
    order = np.argsort(-counts, kind="stable")
    held = np.cumsum(counts[order])
    needed = int(np.searchsorted(held, held[-1] * percent / 100 - 1e-9)) + 1
    return order[:needed] if held[-1] else order[:0]


def ensemble(sure: NDArray[np.float32], right: Right) -> float:
    """Accuracy where the model with the larger maximum probability answers, of two (2, N); the first one wins ties."""
    return float(np.where(sure[1] > sure[0], right[1], right[0]).mean())


def transfer_rates(positive: Right, after: Right, labels: Counts, classes: int) -> dict[str, float]:
    """Share of the positive flips (N,) that the student gets right afterwards (N,): of all, and of the classes with the
    top 2, 5, 20, 50, 100 % of the flips; left out where there are none."""
    counts = by_class(positive, labels, classes)
    found = {}
    for percent in SHARES:
        chosen = positive & np.isin(labels, leading(counts, percent))
        if chosen.any():
            found[f"top_{percent}"] = float(after[chosen].mean())
    return found


def of_pair(
    name: str, teacher: Right, before: Right, after: Right, labels: Counts, names: Sequence[str]
) -> dict[str, Any]:
    """All that is told of one teacher (N,) and the student before and after (N,)."""
    positive, classes = only(teacher, before), len(names)
    counts = by_class(positive, labels, classes)
    order = np.argsort(-counts, kind="stable")
    return {
        "teacher": name,
        "accuracy": float(teacher.mean()),
        "positive_flips": float(positive.mean()),
        "negative_flips": float(only(before, teacher).mean()),
        "positive_flips_after": float(only(teacher, after).mean()),
        "negative_flips_after": float(only(after, teacher).mean()),
        "by_class": {names[i]: int(counts[i]) for i in order if counts[i]},
        "entropy": entropy(counts),
        "classes_of_share": {f"top_{p}": len(leading(counts, p)) for p in SHARES},
        "transfer_rate": transfer_rates(positive, after, labels, classes),
    }

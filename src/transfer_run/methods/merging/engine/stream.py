"""The streaming engine: tensors are read, merged and written in pieces; memory is some pieces, never a model.

    models ──┐  pieces of one tensor            ┌── CheckpointWriter (safetensors)
    base   ──┴── Rule.merge(job, piece) ── sink ┴── Memory, Live

A piece begins at a multiple of `BLOCK` elements, whatever its length, and every sum that runs over a whole model is
made of one term a block; so results do not depend on the piece size to the last bit. Arithmetic keeps to single
multiplications and additions: fused ones round differently at the ends of vectors.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.align import Layout, align
from transfer_run.methods.merging.engine.checkpoint import Checkpoint
from transfer_run.methods.merging.engine.writer import CheckpointWriter, Memory, Sink

BLOCK = 1 << 16
TASK_VECTOR = "task_vector"
"""Where a search keeps tau_m, below the run's `checkpoints`."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of the flattened tensor `name`."""

    name: str
    start: int
    stop: int


def piece_length(chunk_bytes: float, dtype: torch.dtype) -> int:
    """Elements of a piece of about so many bytes: whole blocks."""
    return max(1, int(chunk_bytes) // (BLOCK * dtype.itemsize)) * BLOCK


class Job:
    """The aligned checkpoints of one merge.

    Args:
        models: theta_1 .. theta_n.
        base: theta_0, or None.
        exclude, mismatched: see `align`.
        dtype: of the arithmetic, float32 or float64.
        chunk_bytes: about the size of one piece; (n + 6) of them are in memory at once, at most.

    Raises:
        UserError: the checkpoints do not fit each other.
    """

    def __init__(
        self,
        models: Sequence[Checkpoint],
        base: Checkpoint | None = None,
        *,
        exclude: Sequence[str] = (),
        mismatched: str = "refuse",
        dtype: torch.dtype = torch.float32,
        chunk_bytes: float = 8e6,
    ) -> None:
        self.models, self.base, self.dtype = list(models), base, dtype
        self.originals = self.models
        self.layout: Layout = align(models, base, exclude, mismatched=mismatched)
        self.step = piece_length(chunk_bytes, dtype)

    @property
    def count(self) -> int:
        """n, the number of models."""
        return len(self.models)

    def replaced(self, models: Sequence[Checkpoint]) -> Job:
        """The same merge of other models, known to have its merged tensors; means are still of the `originals`."""
        other = copy.copy(self)
        other.models = list(models)
        return other

    def pieces(self, name: str, step: int | None = None) -> Iterator[Piece]:
        """The pieces of one merged tensor."""
        numel = (self.layout.merged.get(name) or self.layout.averaged[name]).numel
        for start in range(0, numel, step or self.step):
            yield Piece(name, start, min(numel, start + (step or self.step)))

    def all_pieces(self) -> Iterator[Piece]:
        for name in self.layout.merged:
            yield from self.pieces(name)

    def base_values(self, piece: Piece) -> Tensor:
        """theta_0 at `piece`, flat."""
        assert self.base is not None, "this rule needs a base"
        return self.finite(self.base.read(piece.name, piece.start, piece.stop).to(self.dtype), piece, self.base)

    def values(self, piece: Piece, model: int) -> Tensor:
        """theta_i at `piece`, flat; the caller may change it."""
        source = self.models[model]
        return self.finite(source.read(piece.name, piece.start, piece.stop).to(self.dtype), piece, source)

    def difference(self, piece: Piece, model: int, base: Tensor) -> Tensor:
        """tau_i = theta_i - theta_0 at `piece`; the caller may change it."""
        source = self.models[model]
        return self.finite(source.difference(piece.name, piece.start, piece.stop, base), piece, source)

    @staticmethod
    def finite(values: Tensor, piece: Piece, source: Checkpoint) -> Tensor:
        """The values, all of them finite numbers.

        Raises:
            UserError: naming the tensor and the model.
        """
        if not is_finite(values):
            raise UserError(
                f"The tensor {piece.name} holds values that are no finite numbers.",
                where=source.where,
                remedy="leave that model out: the run that made it has diverged, or the file is damaged",
            )
        return values


class Rule(ABC):
    """How the values of n models become those of one."""

    def check(self, job: Job) -> None:  # noqa: B027 - most rules take all that fit each other
        """What the rule asks of the number of models and of their tensors' shapes; no values are read.

        Raises:
            UserError: they are others.
        """

    def survey(self, job: Job) -> None:
        """Passes over the models before the merge (thresholds, norms)."""
        self.check(job)

    def step(self, job: Job, name: str) -> int | None:
        """Elements a piece of this tensor; None: the job's own."""
        return None

    @abstractmethod
    def merge(self, job: Job, piece: Piece) -> Tensor:
        """The merged values at `piece`, flat."""

    def unsettled(self) -> Iterable[Piece]:
        """Pieces that must be merged again, because only the whole pass has told what they need."""
        return ()

    def close(self) -> None:  # noqa: B027 - most rules keep nothing
        """All is merged: let go of what was kept from piece to piece."""


@torch.no_grad()
def run(job: Job, rule: Rule, sink: Sink) -> None:
    """Merge every tensor of the job into the sink."""
    merge_tensors(job, rule, sink)
    for name in job.layout.averaged:
        for piece in job.pieces(name):
            _write(job, piece, _mean(job, piece), sink)
    for name, source in job.layout.copied.items():
        numel = source.entries[name].numel
        for start in range(0, numel, job.step):
            piece = Piece(name, start, min(start + job.step, numel))
            sink.write(name, start, job.finite(source.read(name, start, piece.stop), piece, source))


@torch.no_grad()
def merge_tensors(job: Job, rule: Rule, sink: Sink) -> None:
    """Only what the rule merges, without what is averaged or taken over."""
    rule.survey(job)
    for name in job.layout.merged:
        for piece in job.pieces(name, rule.step(job, name)):
            _write(job, piece, rule.merge(job, piece), sink)
    for piece in rule.unsettled():
        _write(job, piece, rule.merge(job, piece), sink)
    rule.close()


def _mean(job: Job, piece: Piece) -> Tensor:
    values = [
        job.finite(model.read(piece.name, piece.start, piece.stop).to(job.dtype), piece, model)
        for model in job.originals
    ]
    total = values[0]
    for each in values[1:]:
        total.add_(each)
    return total.div_(len(values))


def _write(job: Job, piece: Piece, values: Tensor, sink: Sink) -> None:
    """Into the sink, in the type of the result.

    Raises:
        UserError: a merged value is infinite or no number, in itself or in that type.
    """
    dtype = (job.layout.merged.get(piece.name) or job.layout.averaged[piece.name]).dtype
    if not is_finite(values.to(dtype)):
        small = is_finite(values)
        raise UserError(
            f"The merged {piece.name} would hold values "
            + (f"too large for {str(dtype).removeprefix('torch.')}." if small else "that are no finite numbers."),
            where=", ".join(model.where for model in job.originals),
            remedy="name a base or a first model of a wider type (float32): the result has its types"
            if small
            else "choose a smaller method.lambda, or other method.weights",
        )
    for name in (piece.name, *job.layout.tied.get(piece.name, ())):
        sink.write(name, piece.start, values)


def merge_to_folder(job: Job, rule: Rule, folder: Path, *, max_shard_bytes: float = 5e9, stem: str = "model") -> None:
    """Merge into a safetensors checkpoint in `folder`."""
    with CheckpointWriter(folder, job.layout.entries(), max_shard_bytes=max_shard_bytes, stem=stem) as writer:
        run(job, rule, writer)


def merge_in_memory(job: Job, rule: Rule) -> dict[str, Tensor]:
    """The merged tensors as a dict, bit for bit what `merge_to_folder` writes."""
    memory = Memory(job.layout.entries())
    run(job, rule, memory)
    return memory.tensors


class SquareSum:
    """The exactly rounded sum of one float64 term a block: the same whatever the piece size and the threads."""

    def __init__(self) -> None:
        self._terms: list[float] = []

    def add(self, values: Tensor) -> None:
        squares = np.square(values.numpy(), dtype=np.float64)
        whole = len(squares) // BLOCK * BLOCK
        self._terms += squares[:whole].reshape(-1, BLOCK).sum(axis=1).tolist()
        if whole < len(squares):
            self._terms.append(float(squares[whole:].sum()))

    @property
    def value(self) -> float:
        return math.fsum(self._terms)


def is_finite(values: Tensor) -> bool:
    """Are all values finite numbers? A finite sum says so at once."""
    if not values.is_floating_point() or bool(torch.isfinite(values.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(values.float()).all())


def model_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One factor a model; ones where none are given.

    Raises:
        UserError: another number of them, all zero, or one that is no finite number.
    """
    factors = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(factors) != count or not any(factors) or not all(math.isfinite(factor) for factor in factors):
        raise UserError(
            f"There are {count} models and the weights {factors}.",
            where="method.weights",
            remedy="one finite number a model, not all zero",
        )
    return factors

"""Small random checkpoints for the merging tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from transfer_run.methods.merging.engine.checkpoint import StateDict, open_checkpoint
from transfer_run.methods.merging.engine.stream import BLOCK, Job, Rule, merge_in_memory, merge_to_folder

Tensors = dict[str, Tensor]

SHAPES = {"a.weight": (7, 5), "block.10.weight": (3, 11), "block.2.bias": (5,), "conv": (2, 3, 3), "scalar": ()}
LONG = {"long.weight": (3, BLOCK), "odd": (BLOCK + 17,), "small": (4, 3)}


def random_models(
    count: int, shapes: Mapping[str, tuple[int, ...]] | None = None, seed: int = 0, change: float = 0.1
) -> tuple[Tensors, list[Tensors]]:
    """A base and `count` changed copies."""
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES if shapes is None else shapes
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    models = [
        {n: t + change * torch.randn(t.shape, generator=generator) for n, t in base.items()} for _ in range(count)
    ]
    return base, models


def job(base: Tensors | None, models: Sequence[Tensors], **settings: Any) -> Job:
    opened = [StateDict(model, f"model{i}") for i, model in enumerate(models)]
    return Job(opened, None if base is None else StateDict(base, "base"), **settings)


def merged(base: Tensors | None, models: Sequence[Tensors], rule: Rule, **settings: Any) -> Tensors:
    """Merged in memory."""
    return merge_in_memory(job(base, models, **settings), rule)


def write(tensors: Tensors, folder: Path) -> Path:
    """As `save_pretrained` names it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def streamed(
    base: Tensors | None,
    models: Sequence[Tensors],
    rule: Rule,
    folder: Path,
    max_shard_bytes: float = 5e9,
    **settings: Any,
) -> Tensors:
    """Merged from files to files, read back piece by piece."""
    paths = [write(model, folder / f"model{i}") for i, model in enumerate(models)]
    start = None if base is None else open_checkpoint(write(base, folder / "base"))
    work = Job([open_checkpoint(path) for path in paths], start, **settings)
    merge_to_folder(work, rule, folder / "out", max_shard_bytes=max_shard_bytes)
    out = open_checkpoint(folder / "out")
    return {name: out.read(name, 0, entry.numel).view(entry.shape) for name, entry in out.entries.items()}


def flat(tensors: Tensors) -> Tensor:
    """All tensors in string order of their names, as one vector."""
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def vectors(rows: Sequence[Sequence[float]]) -> tuple[Tensors, list[Tensors]]:
    """A base of zeros and models whose task vectors are `rows`."""
    return {"x": torch.zeros(len(rows[0]))}, [{"x": torch.tensor(row, dtype=torch.float32)} for row in rows]

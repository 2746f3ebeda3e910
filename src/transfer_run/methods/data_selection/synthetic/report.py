"""What a distillation tells: accuracies of fresh networks on the synthetic and on real sets, the losses."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from transfer_run.backbones.base import Batch
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork

AT_EACH_END = 20
"""Outer steps whose mean loss tells how the distillation began and ended."""
LABELS = {"distilled": "distilled images", "random": "real images at random", "initial": "the images it began from"}


@torch.no_grad()
def accuracy(network: FlatNetwork, batches: Iterable[Batch]) -> float:
    """The share of labelled rows whose class the network's own weights predict."""
    right = rows = 0
    for batch in batches:
        known = batch["labels"] >= 0
        right += int(((network.own(batch["pixel_values"]).argmax(-1) == batch["labels"]) & known).sum())
        rows += int(known.sum())
    return right / max(rows, 1)


def seed_of(seed: int, name: str) -> int:
    """The seed of one thing that a run draws: another one for everything of every run."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


def summary(
    curves: Mapping[str, Sequence[Sequence[float]]],
    losses: Sequence[float],
    rate: float,
    images: int,
    split: str,
) -> dict[str, Any]:
    """`extra` of a distillation's result.

    Args:
        curves: set -> the accuracies of each network while it learned the set.
        split: whose rows they were tested on.
    """
    metrics: dict[str, float] = {"images": float(images), "step_size": rate}
    if losses:
        metrics |= {
            "loss/first": statistics.fmean(losses[:AT_EACH_END]),
            "loss/last": statistics.fmean(losses[-AT_EACH_END:]),
        }
    lines = [f"{images} images, step size {rate:.4g}; accuracy of fresh networks on the {split} split (last, best)"]
    found: dict[str, Any] = {}
    for name, networks in curves.items():
        ends = {"last": [curve[-1] for curve in networks], "max": [max(curve) for curve in networks]}
        found[name] = ends
        for end, values in ends.items():
            metrics[f"{name}/{end}"] = statistics.fmean(values)
            if len(values) > 1:
                metrics[f"{name}/{end}_std"] = statistics.stdev(values)
        lines.append(f"  {LABELS[name]:<26} {_spread(ends['last'])}   {_spread(ends['max'])}")
    return {"metrics": metrics, "accuracies": found, "tested_on": split, "table": lines, "picture": "synthetic.png"}


def _spread(values: Sequence[float]) -> str:
    spread = f" ±{100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread} %"

"""One pass of a frozen backbone over the data: the head's input, all block outputs, the source classifier's answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.work import alone

Tap = Literal["head_input", "all_blocks"]
BlockFeatures = Literal["auto", "flattened", "pooled"]
HEAD_INPUT = "head_input"
LARGEST_SHARE = 0.5  # of the machine's memory that features may take; scoring makes copies


@dataclass(frozen=True)
class Extraction:
    """What one backbone makes of N labelled samples.

    Attributes:
        features: (N, D) float32 by tap: `block0`, `block1`, ... and `head_input`.
        labels: (N,) class numbers (int64), or values (float64) of a regression.
        source: (N, S) class probabilities of the classifier that the weights came with; None where there is none.
        seconds: wall time of the pass, data loading included.
    """

    features: dict[str, NDArray[np.float32]]
    labels: NDArray[Any]
    source: NDArray[np.float64] | None
    seconds: float


@torch.no_grad()
def extract(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    tap: Tap = "head_input",
    block_features: BlockFeatures = "auto",
    max_samples: int | None = None,
) -> Extraction:
    """Run the backbone over the batches once, in eval mode and without gradient.

    Args:
        tap: `all_blocks` takes the output of each block of the first stack besides the head's input.
        block_features: `flattened` keeps all of a block's output, `pooled` its mean over positions, `auto` flattens
            where every position is real (images) and pools where texts differ in length.
        max_samples: stop after so many labelled samples; None: take all.

    Raises:
        UserError: no sample carries a label, a feature is not finite, or the features outgrow the memory.
    """
    begin, training = time.perf_counter(), backbone.training
    backbone.eval()
    taps: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    source: list[Tensor] = []
    held = 0
    for batch in _labelled(batches, max_samples):
        labels.append(batch.pop("answers").cpu())
        backbone.to(next(iter(batch.values())).device)
        for name, values in tap_features(backbone, batch, tap, block_features):
            taps.setdefault(name, []).append(alone(values.float().cpu()))
            held += taps[name][-1].nbytes
        del values  # a part of the last state, which the next batch need not have beside it
        _refuse_overflow(held, sum(map(len, labels)))
        logits = source_logits(backbone, taps[HEAD_INPUT][-1])
        if logits is not None:
            source.append(logits.double().softmax(-1))
    backbone.train(training)
    if not labels:
        raise UserError(
            "No training sample carries a label, so there is nothing to score against.",
            where="dataset",
            remedy="choose a data set with class labels or values (free text has none)",
        )
    features = {name: torch.cat(parts).numpy() for name, parts in taps.items()}
    _refuse_infinite(backbone, features)
    answers = torch.cat(labels).numpy()
    answers = answers.astype(np.float64 if answers.dtype.kind == "f" else np.int64)
    probabilities = torch.cat(source).numpy() if source else None
    return Extraction(features, answers, probabilities, time.perf_counter() - begin)


def _labelled(batches: Iterable[Batch], most: int | None) -> Iterator[Batch]:
    """The labelled rows of the batches, at most `most` in all; their class numbers or values stand under `answers`."""
    seen = 0
    for batch in batches:
        answers = batch["targets"] if "targets" in batch else batch["labels"]
        kept = torch.ones_like(answers, dtype=torch.bool) if answers.is_floating_point() else answers >= 0
        rows = kept.nonzero().flatten()[: None if most is None else most - seen]
        seen += len(rows)
        if len(rows) == len(answers):
            yield {**batch, "answers": answers}  # no copy of the inputs beside themselves
        elif len(rows):
            yield {name: tensor[rows] for name, tensor in batch.items()} | {"answers": answers[rows]}
        if most is not None and seen >= most:
            return


def tap_features(
    backbone: Backbone, batch: Batch, tap: Tap, block_features: BlockFeatures
) -> Iterator[tuple[str, Tensor]]:
    """One batch's features by tap, the head's input last."""
    for state in backbone.taps(backbone.embed(batch, backbone.stacks[0])):
        if tap == "all_blocks":
            yield f"block{state.index - 1}", block_output(state, block_features)
    yield HEAD_INPUT, backbone.pool(backbone.finish(state), state)


def block_output(state: State, block_features: BlockFeatures) -> Tensor:
    """A block's output as one row per sample: (B, T, D) or (B, C, H, W) to (B, T D), (B, C H W), (B, D) or (B, C)."""
    hidden = state.hidden
    if block_features == "flattened" or (block_features == "auto" and state.mask is None):
        return hidden.flatten(1)
    if hidden.dim() == 4:
        return hidden.mean((2, 3))
    if state.mask is None:
        return hidden.mean(1)
    weights = state.mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def source_logits(backbone: Backbone, features: Tensor) -> Tensor | None:
    """Logits (B, S) of the classifier that the weights came with, from the head's input (B, D); None without one."""
    if backbone.source_head is None:
        return None
    weight, bias = (tensor.to(features) for tensor in backbone.source_head)
    return features @ weight.T + bias


def _refuse_overflow(held: int, samples: int) -> None:
    """The features of all taps stand in memory together; stop before they drive the machine out of it."""
    limit = LARGEST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if held > limit:
        raise UserError(
            f"The features of {samples} samples already take {held / 2**30:.1f} GiB, "
            f"{LARGEST_SHARE:.0%} of this machine's memory.",
            where="method.max_samples, method.block_features",
            remedy="set method.max_samples, or method.block_features=pooled for narrower features",
        )


def _refuse_infinite(backbone: Backbone, features: dict[str, NDArray[np.float32]]) -> None:
    for name, values in features.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"Features of {backbone.config.get('name')} at {name} are not finite, so they cannot be scored.",
                where="backbone.weights",
                remedy="check the weights and the input transform",
            )

"""What a dataset asks of a model: the prediction's form, the labels, the metrics. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from transfer_run.errors import UserError

V = TypeVar("V")


@dataclass(frozen=True)
class Task:
    """A dataset's question to a model.

    Attributes:
        form: what a prediction is, by the name of a file of `methods/forms`, or `module:Class` for one of your own.
        num_labels: classes (1 for regression; for text-to-text the number of label words, 0 for free text).
        label_names: names in the order of the label numbers; for text-to-text the label words.
        metrics: names of `data/metrics.py`, the first one is the headline.
        class_weights: weight of each class in the training loss (classification); empty: all alike.
        label_smoothing: share of the right label's probability that training spreads over all of them.
        class_counts: training rows of each class, where the loss or the scores ask for them (`rows/long_tail.py`).
        class_groups: the group of each class by its rows: many, medium, few.
        balanced_softmax: does training add log(class_counts) to the logits (Ren et al. 2020, arXiv 2007.10740)?
        loss: retrieval only: `infonce`, symmetric cross-entropy of the scaled cosines; `triplet`, hinge with the
            hardest negatives. Elsewhere the form has its own: cross-entropy, mean squared error for regression.
        max_target_length: longest answer in tokens (text-to-text only), what generation stops at.
        sequence: names of the tasks that are learned one after another, an epoch each; empty: one task.
        horizon: steps that are forecast (forecasting only).
        channels: names of a series' channels, in the order of a batch; `label_names` are those that are forecast.
        exogenous: names of those that are known in the future, too.
    """

    form: str
    num_labels: int
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    max_target_length: int = 0
    sequence: tuple[str, ...] = ()
    horizon: int = 0
    channels: tuple[str, ...] = ()
    exogenous: tuple[str, ...] = ()
    loss: str = ""
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    class_counts: tuple[int, ...] = ()
    class_groups: tuple[str, ...] = ()
    balanced_softmax: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Task:
        """The task that `vars(task)` wrote as JSON, lists as tuples again."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**fields)

    @property
    def written(self) -> bool:
        """Is the answer a text that is written (text-to-text)?"""
        return self.max_target_length > 0

    @property
    def headline(self) -> str:
        return self.metrics[0]


Batch = dict[str, Tensor]


BatchSpec = dict[str, tuple[tuple[int, ...], torch.dtype]]


ROWS = "rows"
"""Name under which a batch carries the numbers of its rows."""

OF = "/"
"""Between the name of a data set beside the run's own and that of what it brings: `unlabeled/pixel_values`."""


def named_beside(name: str, batch: Mapping[str, V]) -> dict[str, V]:
    """What the data set `name` brings to a step, under names of its own (tensors, or their shapes)."""
    return {f"{name}{OF}{key}": value for key, value in batch.items()}


def beside(batch: Mapping[str, V], name: str) -> dict[str, V]:
    """What `dataset.beside.NAME` brought to this batch, as a batch of that data set."""
    return {key.removeprefix(f"{name}{OF}"): value for key, value in batch.items() if key.startswith(f"{name}{OF}")}


def without_beside(batch: Mapping[str, V]) -> dict[str, V]:
    """What the run's own data set brought: all that evaluation sees."""
    return {key: value for key, value in batch.items() if OF not in key}


def class_count(dataset: Mapping[str, Any]) -> int:
    """Number of classes from the config alone.

    Raises:
        UserError: neither `num_labels` nor `label_names` is given, or they contradict each other.
    """
    count, names = dataset.get("num_labels"), dataset.get("label_names")
    if count is None and not names:
        raise UserError(
            "The number of classes is not known.",
            where=f"dataset={dataset['name']}",
            remedy="set dataset.num_labels=N or dataset.label_names=[...]",
        )
    if count is not None and names and count != len(names):
        raise UserError(
            f"dataset.num_labels={count}, but dataset.label_names holds {len(names)} names.",
            where=f"dataset={dataset['name']}",
            remedy="let them agree, or set dataset.num_labels=null",
        )
    return int(count) if count is not None else len(names or ())

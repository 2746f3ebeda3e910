"""The classifier that a backbone's weights came with becomes the head: for what starts from a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from transfer_run.backbones.weights.names import Weights
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.task import Task

WHERE = "backbone.weights"
REMEDY = (
    "backbone.weights='run:method=full ...' takes those of a finished run on this data set, with its head; or name a "
    "folder whose classifier is for these classes"
)


def refuse_untrained(method: Method) -> None:
    """What the words alone tell: random weights bring no classifier.

    Raises:
        UserError: the backbone's weights are random.
    """
    backbone = method.backbone
    if backbone.source_head is None and Weights.of(backbone.config).kind == "random":
        raise UserError(
            f"The weights of backbone={backbone.config.get('name')} are random: no classifier comes with them.",
            where=f"{WHERE}={backbone.config.get('weights') or 'random'}",
            remedy=REMEDY,
        )


@torch.no_grad()
def take_classifier(method: Method) -> None:
    """Give the method's head the weights of the classifier that came with its backbone's.

    Raises:
        UserError: there is none, or one of other classes.
    """
    backbone, head = method.backbone, method.backbone.head
    found, where = backbone.source_head, f"{WHERE}={backbone.config.get('weights')}"
    if found is None or not isinstance(head, nn.Linear):
        raise UserError("No linear classifier comes with the backbone's weights.", where=where, remedy=REMEDY)
    weight, bias = found
    if weight.shape != head.weight.shape:
        raise UserError(
            f"The backbone's weights bring a classifier of {len(weight)} classes from {weight.shape[1]} features; the "
            f"run's task has {method.task.num_labels}, the model {head.in_features}.",
            where=where,
            remedy=REMEDY,
        )
    refuse_other_names(backbone.source_labels, method.task, where)
    head.weight.copy_(weight)
    head.bias.copy_(bias)


def refuse_other_names(names: Sequence[str], task: Task, where: str) -> None:
    """The classes of a classifier against those of a task, where both have names that are more than numbers in order.

    Raises:
        UserError: the same numbers would mean other classes.
    """
    numbers = tuple(map(str, range(task.num_labels)))
    known = [tuple(each) for each in (names, task.label_names) if tuple(each) not in ((), numbers)]
    if len(known) == 2 and known[0] != known[1]:
        raise UserError(
            f"The classifier's classes are {', '.join(known[0][:6])}, the run's {', '.join(known[1][:6])}: the same "
            "numbers would mean other classes.",
            where=where,
            remedy="weights for these classes, in this order (dataset.label_names says the order)",
        )

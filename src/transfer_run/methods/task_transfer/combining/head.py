"""RoBERTa's own classification head, which the paper trains in stage two: dropout, dense, tanh, dropout, out."""

from __future__ import annotations

from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.precise import as_head
from transfer_run.errors import UserError

DROPOUT = 0.1


def make_dense(backbone: Backbone) -> None:
    """Put a dense layer of the features' width before the fresh linear head of this view of a backbone, in place.

    Raises:
        UserError: the task has no linear head.
    """
    out = backbone.head
    if not isinstance(out, nn.Linear):
        raise UserError(
            "This task is answered by no linear head that a dense layer could stand before.",
            where="method.head=dense",
            remedy="method.head=linear",
        )
    dense = nn.Linear(out.in_features, out.in_features, device=out.weight.device, dtype=out.weight.dtype)
    nn.init.normal_(dense.weight, std=0.02)
    nn.init.zeros_(dense.bias)
    backbone.head = nn.Sequential(nn.Dropout(DROPOUT), dense, nn.Tanh(), nn.Dropout(DROPOUT), out)
    if backbone.in_bf16:
        backbone.head.register_forward_pre_hook(as_head)

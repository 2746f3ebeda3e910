"""An epoch's last batch, which may hold one row: refused before training where a batch norm cannot take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from transfer_run.data.base import DataModule
from transfer_run.errors import UserError
from transfer_run.methods.base import Method


def check_last_batch(method: Method, data: DataModule, config: Mapping[str, Any], world: int) -> None:
    """Refuse a training that would end in its first epoch.

    Args:
        method: on the device that it will be trained on; its state stays as it is.
        world: processes, among which a batch is divided.

    Raises:
        UserError: no batch is full and such are left out; or a batch norm in training sees one value a channel.
    """
    rows, size = data.sizes["train"], config["dataset"]["batch_size"]
    whole, rest = divmod(rows, size)
    if config["trainer"].get("drop_last"):
        if not whole:
            raise UserError(
                f"The {rows} training rows fill no batch, and a batch that is not full is left out.",
                where=f"dataset.batch_size={size} trainer.drop_last=true",
                remedy=f"dataset.batch_size={rows} or less, or trainer.drop_last=null",
            )
        rest = 0
    last = config["trainer"]["max_steps"]
    if last is not None and last * config["trainer"]["accumulate"] <= whole:  # training ends before that batch
        rest = 0
    alone = 1 in ([-(-rest // world)] if rest else []) or size // world == 1
    if not alone or not any(isinstance(module, _BatchNorm) for module in method.modules()):
        return
    if _takes_one_row(method, data):
        return
    if size // world == 1:
        what, remedy = "Batches of one row", f"dataset.batch_size={2 * world} or more"
    else:
        what = f"The last batch of an epoch ({rows} rows in batches of {size}) holds one row"
        remedy = f"trainer.drop_last=true leaves it out; or dataset.batch_size={size - 1}"
    raise UserError(
        f"{what}, of which a batch norm in training makes nothing.", where="dataset.batch_size", remedy=remedy
    )


def _takes_one_row(method: Method, data: DataModule) -> bool:
    """Does a forward pass in training accept one row? Batch norms over the places of a picture do."""
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    modes = [(module, module.training) for module in method.modules()]
    device = next(method.parameters()).device
    batch = data.collate([data.split("train")[0]])
    try:
        with torch.random.fork_rng(), torch.no_grad():
            method.train()
            method({name: tensor.to(device) for name, tensor in batch.items()})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return False
    finally:
        for module, training in modes:
            module.training = training
        for name, buffer in method.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])
    return True

"""From the words of a config to open checkpoints: full models, adapters on a base, adapters among themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_run.backbones.weights.hub import fetch_weights
from transfer_run.backbones.weights.names import is_hub_name
from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.adapters import LoraCheckpoint, adapter_config
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, Ones, open_checkpoint

ONES = "ones"


def local_path(name: str) -> Path:
    """The folder or file that a config names; a model of the hub (NAME, NAME@REVISION) is looked up in the cache, then
    fetched.

    Raises:
        UserError: there is neither.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not is_hub_name(name):
        raise UserError(
            f"{name} does not exist.",
            where="method.models, method.base",
            remedy="name a folder with safetensors files",
        )
    hub, _, revision = name.partition("@")
    try:
        return fetch_weights(hub, revision or None)
    except UserError as error:
        raise UserError(
            f"{name} is no folder, and not to be had from the hub: {error.what}",
            where="method.models, method.base",
            remedy=error.remedy,
        ) from error


def open_models(models: Sequence[Path], base: str | None) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The models and the base they started from.

    LoRA folders on a full base are read as that base changed by them; on the saved start of an adapter, or on `ones`,
    as the tensors that they are.

    Args:
        base: a folder, a file, a hub name, `ones`, or None.

    Raises:
        UserError: something cannot be read, or full models and adapters are mixed without a full base.
    """
    adapters = [adapter_config(path) is not None for path in models]
    if base == ONES or base is None:
        if base is None and any(adapters):
            raise UserError(
                "Adapters say nothing of where they started.",
                where="method.base",
                remedy="method.base=ones for (IA)^3; for LoRA the full model it changes, or the adapter's saved start",
            )
        opened = [open_checkpoint(path) for path in models]
        return list(opened), Ones(opened[0]) if base == ONES and opened else None
    path = local_path(base)
    start = open_checkpoint(path)
    if adapter_config(path) is not None:
        return [open_checkpoint(model) for model in models], start
    return [
        LoraCheckpoint(start, model) if adapter else open_checkpoint(model)
        for model, adapter in zip(models, adapters, strict=True)
    ], start

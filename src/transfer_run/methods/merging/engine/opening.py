"""From the words of a config to open checkpoints: full models, adapters on a base, adapters among themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_run.backbones.weights.files import adapter_config
from transfer_run.backbones.weights.hub import cached_weights, fetch_weights
from transfer_run.backbones.weights.names import is_hub_name
from transfer_run.backbones.weights.settings import differences, folder_computing
from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.adapters import LoraCheckpoint, check_factors
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, Ones, open_checkpoint
from transfer_run.methods.merging.engine.names import under_names_of

ONES = "ones"


def is_at_hand(name: str) -> bool:
    """Is the folder, the file or the hub's model on this machine?"""
    hub, _, revision = name.partition("@")
    return Path(name).expanduser().exists() or cached_weights(hub, revision or None) is not None


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


def open_base(words: str) -> Checkpoint:
    """theta_0 as a folder, a file or a model of the hub.

    Raises:
        UserError: it cannot be read.
    """
    return open_checkpoint(local_path(words))


def open_model(path: Path, base: Checkpoint | None, exclude: Sequence[str] = ()) -> Checkpoint:
    """One model: an adapter as the base changed by it, anything else as its tensors, under the base's names.

    Args:
        base: a full model; None: the tensors as they are.
        exclude: regular expressions of tensors that are not merged.

    Raises:
        UserError: it cannot be read, or does not fit the base.
    """
    if base is None:
        return open_checkpoint(path)
    if adapter_config(path) is not None:
        return LoraCheckpoint(base, path, exclude)
    opened = under_names_of(open_checkpoint(path), base)
    refuse_other_computing(opened, base)
    return opened


def refuse_other_computing(model: Checkpoint, base: Checkpoint) -> None:
    """Tensors of equal shapes from models that compute different things have no mean.

    Raises:
        UserError: naming the settings in which the two folders' config.json differ.
    """
    settings = [folder_computing(Path(each.where)) for each in (model, base)]
    differing = differences(*settings) if settings[0] and settings[1] else []
    if differing:
        named = "; ".join(f"{name} is {one!r} and {other!r}" for name, one, other in differing[:4])
        raise UserError(
            f"The models compute different things with their weights: {named}.",
            where=f"{model.where}, {base.where}",
            remedy="merge models of one architecture, fine-tuned from one checkpoint",
        )


def open_models(
    models: Sequence[Path], base: str | None, exclude: Sequence[str] = ()
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The models and the base they started from.

    LoRA folders on a full base are read as that base changed by them; on the saved start of an adapter, or (IA)^3 on
    `ones`, as the tensors that they are.

    Args:
        base: a folder, a file, a hub name, `ones`, or None.
        exclude: regular expressions of tensors that are not merged.

    Raises:
        UserError: something cannot be read, or full models and adapters are mixed without a full base.
    """
    kinds = [(adapter_config(path) or {}).get("peft_type") for path in models]
    if base is None:
        if any(kinds):
            raise UserError(
                "Adapters say nothing of where they started.",
                where="method.base",
                remedy="method.base=ones for (IA)^3; for LoRA the full model it changes, or the adapter's saved start",
            )
        first = [open_checkpoint(path) for path in models[:1]]
        return [*first, *(open_model(path, first[0]) for path in models[1:])], None
    if base == ONES:
        others = [f"{path} ({kind})" for path, kind in zip(models, kinds, strict=True) if kind not in (None, "IA3")]
        if others:
            raise UserError(
                "Only the vectors of (IA)^3 start at ones.",
                where=f"method.base=ones: {', '.join(others)}",
                remedy="method.base=FOLDER, the full model that the adapters change",
            )
        opened: list[Checkpoint] = [open_checkpoint(path) for path in models]
        return opened, Ones(opened[0]) if opened else None
    start = local_path(base)
    if adapter_config(start) is not None:
        check_factors([start, *models])
        return [open_model(path, None) for path in models], open_checkpoint(start)
    full = open_checkpoint(start)
    return [open_model(path, full, exclude) for path in models], full

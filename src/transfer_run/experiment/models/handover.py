"""What a run takes over from the run that it starts from.

    weights=run:WORDS     the backbone alone
    weights=stage:WORDS   all that a next stage goes on from: backbone, trained modules, head

A run that trained the whole backbone hands on its weights. One that trained beside frozen weights hands on its
trained modules to a run of the same method with the same settings, on the weights that it stood on itself; to any
other method it hands on the backbone with its changes folded in (LoRA and kin of peft, biases, norms, blocks), or
refuses where they cannot be (prompts, adapters, side networks). The head goes on where the label set is the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.weights.checkpoints import read_tensors
from transfer_run.backbones.weights.names import Weights
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.artifacts import made
from transfer_run.experiment.models.model_files import backbone_config, load_model, save_model
from transfer_run.methods.base import Method
from transfer_run.methods.build import WHOLE_BACKBONE, build_method, method_settings
from transfer_run.run_folder import (
    BODY_PREFIX,
    HEAD_PREFIX,
    MODEL,
    WEIGHTS,
    has_model,
    is_run,
    model_folder,
    read_description,
)
from transfer_run.task import Task


def is_stage(config: Mapping[str, Any]) -> bool:
    """Does the run go on from the model of another one?"""
    return Weights.of(config["backbone"]).kind == "stage"


def starting_backbone(config: Mapping[str, Any], sources: Mapping[str, Path]) -> dict[str, Any]:
    """The run's `backbone` node with weights that can be read."""
    if is_stage(config):
        about = read_description(model_folder(sources["backbone"]))
        if _same_method(about, config) and not about["complete"]:
            own = backbone_config(about)
            return {**config["backbone"], "weights": own["weights"], "revision": own["revision"]}
    return resolved_backbone(config["backbone"], dict(sources))


def hand_over(
    method: Method, config: Mapping[str, Any], sources: Mapping[str, Path], log: Callable[[str], None]
) -> None:
    """Fill a built and prepared method with what the stage before it hands on beside the backbone.

    Raises:
        UserError: it stored another form than the method trains.
    """
    if not is_stage(config):
        return
    folder = model_folder(sources["backbone"])
    about, tensors = read_description(folder), read_tensors(folder / WEIGHTS)
    if _same_method(about, config):
        carried = {n: t for n, t in tensors.items() if not n.startswith(HEAD_PREFIX)}
        if about["complete"]:
            carried = {n: t for n, t in carried.items() if not n.startswith(BODY_PREFIX)}
        _fill(method, carried, folder)
    _hand_over_head(method, {n: t for n, t in tensors.items() if n.startswith(HEAD_PREFIX)}, about, log)


def _fill(method: Method, carried: Mapping[str, Tensor], folder: Path) -> None:
    state = method.state_dict()
    shipped = method.shipped()  # what is trained and not shipped begins anew
    trained = {
        n
        for n, p in method.named_parameters()
        if p.requires_grad and n in shipped and not n.startswith((BODY_PREFIX, HEAD_PREFIX))
    }
    strange = sorted(n for n, t in carried.items() if n not in state or state[n].shape != t.shape)
    if strange or trained - carried.keys():
        first = (strange or sorted(trained - carried.keys()))[:3]
        raise UserError(
            "What the stage before stored is not what this method trains, so it cannot go on from it.",
            where=f"{folder}: {', '.join(first)}",
            remedy="use a method that trains what it stores (p_tuning and reparametrised prefixes do not)",
        )
    with torch.no_grad():
        for name, tensor in carried.items():
            state[name].copy_(tensor)


def _hand_over_head(
    method: Method, head: Mapping[str, Tensor], about: Mapping[str, Any], log: Callable[[str], None]
) -> None:
    before, state = Task.from_json(about["task"]), method.state_dict()
    fresh = {name for name in state if name.startswith(HEAD_PREFIX)}
    if not head or not fresh:
        return
    fits = head.keys() == fresh and all(state[name].shape == tensor.shape for name, tensor in head.items())
    if fits and method.keeps_head(before):
        with torch.no_grad():
            for name, tensor in head.items():
                state[name].copy_(tensor)
        log(f"the head of the stage before goes on ({', '.join(method.task.label_names) or 'one value'})")
        return
    names = [", ".join(task.label_names[:6]) or f"{task.num_labels} outputs" for task in (before, method.task)]
    log(f"a new head: the stage before answered {names[0]}, this one {names[1]}")


def _same_method(about: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    one, other = about["method"], config["method"]
    return one["name"] == other["name"] and method_settings(one) == method_settings(other)


def whole_model(run: Path) -> Path:
    """The folder with the whole backbone that a finished run ended with; merged and written once where it is missing.

    Raises:
        UserError: what the run trained cannot be folded into a backbone.
    """
    folder = model_folder(run)
    if not has_model(folder) or read_description(folder)["complete"]:
        return folder
    merged = folder / "merged"
    if not has_model(merged):
        partial = folder / f".merged.{os.getpid()}"
        save_merged(load_model(folder, packed=False), read_description(folder), partial, where=str(run))
        try:
            partial.replace(merged)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return merged


def save_merged(method: Method, about: Mapping[str, Any], out: Path, where: str) -> Method:
    """Fold a finished method into its backbone and save that, as a fully trained model.

    Returns:
        The fully trained model with equal outputs.

    Raises:
        UserError: naming what cannot be folded.
    """
    merged = as_full(method, about, where)
    config = {"method": dict(registry.entry("method", WHOLE_BACKBONE).content["method"]), "backbone": about["backbone"]}
    save_model(merged, out, config, about["transform"])
    return merged


def as_full(method: Method, about: Mapping[str, Any], where: str) -> Method:
    """The finished method folded into its backbone, as `method=full` has it.

    Raises:
        UserError: naming what cannot be folded.
    """
    name, problem = about["method"]["name"], ""
    try:
        method.fold()
    except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:  # of peft's many tuners
        problem = f" ({error})"
    plain = build_backbone(dict(about["backbone"]), device="meta").model
    added = [n for n in method.shipped() if not n.startswith((BODY_PREFIX, HEAD_PREFIX))]
    added += sorted({n for n, _ in method.backbone.model.named_parameters()} ^ {n for n, _ in plain.named_parameters()})
    if added or problem:
        raise UserError(
            f"What method={name} trained cannot be folded into the backbone{problem}.",
            where=f"{where}: {', '.join(added[:3])}",
            remedy=f"go on with method={name} and the same settings, or begin with a method that changes the "
            "backbone's own weights",
        )
    full = dict(registry.entry("method", WHOLE_BACKBONE).content["method"])
    merged = build_method(full, method.backbone, method.task)
    merged.backbone.head.load_state_dict(method.backbone.head.state_dict())
    return merged.eval()


def resolved_backbone(backbone: dict[str, Any], sources: dict[str, Path], name: str = "backbone") -> dict[str, Any]:
    """A backbone's config with weights of a source run replaced by the folder of its model, merged where need be; so
    are those of an export that holds only what was trained.

    Args:
        name: of the source that the weights are: `backbone`, or KEY.WORDS of a backbone that a key of the method names.
    """
    weights = Weights.of(backbone)
    if weights.saved is not None:
        return {**backbone, "weights": str(whole_model(weights.saved))}
    if name not in sources or not weights.of_run:
        return backbone
    run = sources[name]
    kind = made(run) if is_run(run) else None
    whole = kind is None or kind.at == MODEL
    return {**backbone, "weights": str(whole_model(run) if whole or kind is None else kind.path(run))}

"""A finished model on disk: what was trained, and everything needed to use it again, or a refusal to load.

checkpoints/model/
  model.safetensors   the trained tensors (all tensors when nothing was frozen)
  model.json          method and backbone with their settings, provenance, task, label names, input transform
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.quantised import pack
from transfer_run.backbones.weights.checkpoints import read_tensors, refuse_not_finite
from transfer_run.backbones.weights.stored import StoredTensors
from transfer_run.errors import UserError, nearest_names
from transfer_run.files import read_json, write_json, written_whole
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method
from transfer_run.run_folder import AGAIN, DESCRIPTION, HEADS, TASKS, WEIGHTS, check_model, read_description, sha256
from transfer_run.task import Task


def save_model(method: Method, folder: Path, config: Mapping[str, Any], transform: Mapping[str, Any]) -> None:
    """Write the settled method; the description last, so that a half-written folder is never taken for a model.

    Args:
        config: the composed config with `method` and `backbone` nodes.
        transform: what turns a raw example into a batch (`DataModule.transform_description`).
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.shipped().items()}
    with written_whole(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
        written = sha256(partial)
    write_json(
        folder / DESCRIPTION,
        {
            "schema": 1,
            "method": config["method"],
            "backbone": config["backbone"],
            "provenance": method.backbone.provenance,
            "task": {**vars(method.task)},
            "transform": dict(transform),
            "complete": method.has_whole_backbone(),
            "tensors": len(tensors),
            "sha256": {WEIGHTS: written},
        },
    )


def backbone_config(about: Mapping[str, Any], weights: str | None = None) -> dict[str, Any]:
    """The backbone's config naming the very weights that the run found: seed, folder, or commit of the hub."""
    provenance = about["provenance"]
    config = {**about["backbone"], "weights": weights or provenance["weights"]}
    if weights is None and provenance["source"] == "hub":
        config |= {"weights": "hub", "revision": provenance["commit"] or provenance["revision"]}
    return config


def tasks_of(folder: Path) -> dict[str, Any]:
    """The tasks whose heads lie beside a merged model, by the names of its sources; none of any other model."""
    path = folder / HEADS / TASKS
    return read_json(path, AGAIN) if path.is_file() else {}


def on_task(method: Method, folder: Path, name: str) -> Method:
    """The merged model of `folder` with the head of one of its tasks, in eval mode.

    Raises:
        UserError: it has no such task.
    """
    known = tasks_of(folder)
    if name not in known:
        raise UserError(
            f"The model has no task {name!r}.",
            where=str(folder),
            nearest=nearest_names(name, known) or sorted(known),
            remedy="" if known else "only a model merged from finished runs has several heads",
        )
    other = Method(method.backbone, Task.from_json(known[name]["task"]))
    file = folder / HEADS / f"{name}.safetensors"
    if file.is_file():
        head = {n.removeprefix("head."): tensor for n, tensor in read_tensors(file).items()}
        other.backbone.head.load_state_dict(head)
    return other.requires_grad_(False).eval()


LIBRARIES = ("transformers", "timm")
"""What `library` in the model.json of an exported folder says where the weights are in that library's form."""


def load_model(folder: Path, *, backbone_weights: str | None = None, packed: bool = True) -> Method:
    """The finished model, complete and in eval mode.

    Args:
        backbone_weights: where the frozen backbone's weights are, when not where the run found them.
        packed: False leaves 8- and 4-bit layers in bfloat16, so that changes can be folded into them.

    Raises:
        UserError: a file is damaged, values are not finite, tensors are missing, unexpected or of another shape, or the
            backbone's weights are not those the model was trained on.
    """
    check_model(folder)
    about = read_description(folder)
    task = Task.from_json(about["task"])
    if about.get("library") in LIBRARIES:
        return _from_library(folder, about, task)
    config = backbone_config(about, backbone_weights)
    backbone = build_backbone(config, weights=not about["complete"])
    known, found = about["provenance"].get("checksum"), backbone.provenance.get("checksum")
    if not about["complete"] and known != found:
        raise UserError(
            "The backbone's weights are not those this model was trained on.",
            where=f"{folder}: expected checksum {known}, found {found}",
            remedy="name the folder with the original weights",
        )
    method = build_method(about["method"], backbone, task)
    method.settle()
    _fill(method, folder)
    if packed:
        pack(method.backbone)  # 8- and 4-bit layers are packed on their way to the GPU
    return method.eval()


@torch.no_grad()
def _fill(method: Method, folder: Path) -> None:
    """Copy the stored tensors into the settled method, one after the other."""
    stored = StoredTensors(folder / WEIGHTS)
    method.fit_stored(stored.shapes)
    wanted = method.shipped()
    wrong = sorted(n for n in wanted.keys() & stored.shapes.keys() if wanted[n].shape != stored.shapes[n])
    missing, unexpected = sorted(wanted.keys() - stored.shapes.keys()), sorted(stored.shapes.keys() - wanted.keys())
    if missing or unexpected or wrong:
        raise UserError(
            f"{folder / 'model.safetensors'} does not fit the model that model.json describes.",
            where=f"missing {missing[:3]}, unexpected {unexpected[:3]}, of another shape {wrong[:3]}",
            remedy="carry out the run again with force=true",
        )
    for name in stored.shapes:
        wanted[name].copy_(stored.read(name))
    refuse_not_finite(wanted, folder)


def _from_library(folder: Path, about: Mapping[str, Any], task: Task) -> Method:
    """An exported model: the backbone as its library writes it, the head beside it."""
    backbone = build_backbone({**about["backbone"], "weights": str(folder)})
    method = build_method(about["method"], backbone, task)
    method.settle()
    head = folder / "head.safetensors"
    if head.is_file():
        tensors = read_tensors(head)
        method.backbone.head.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items()})
    refuse_not_finite(dict(method.named_parameters()), folder)
    return method.eval()

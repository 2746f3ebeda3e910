"""A plain folder of transformers or timm, told by its config.json: which backbone is it, and has it a classifier?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from transfer_run.backbones.declared import families, family_that_loads
from transfer_run.backbones.weights.files import stored_config, weight_files
from transfer_run.errors import UserError

HEADS = ("head", "classifier", "score", "fc", "linear")
"""Names under which folders keep a linear classifier: ours (head.safetensors), transformers', timm's and others'."""


def folder_backbone(folder: Path) -> dict[str, Any]:
    """The `backbone` node of the model in `folder`, its weights included.

    Raises:
        UserError: there is no config.json, or no backbone reads such a model.
    """
    stored = stored_config(folder)
    common = {"name": folder.name, "weights": str(folder), "hub": None, "revision": None, "tokenizer": None}
    if "architecture" in stored:  # timm
        given = {k: v for k, v in (stored.get("model_args") or {}).items() if k != "num_classes"}  # no classifier
        library, kind, architecture = "timm", str(stored["architecture"]), {"model": stored["architecture"], **given}
        common |= _image(stored)
    else:
        library, kind, architecture = "transformers", str(stored.get("model_type")), None
    found = family_that_loads(library, kind)
    if found is None:
        known = sorted(kind for family in families().values() for kind in family.loads.get("transformers", ()))
        raise UserError(
            f"No backbone reads a model of type {kind!r}.",
            where=str(folder / "config.json"),
            remedy=f"name a folder of timm, or of transformers with one of {', '.join(known)}",
        )
    family, words = found
    return {**common, "family": family.name, "architecture": architecture, **words}


def _image(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The `image` node of a model of images, where its config.json says how it reads them."""
    said: Mapping[str, Any] = stored.get("pretrained_cfg") or stored.get("input") or {}
    shape = said.get("input_size") or said.get("size")
    if not shape or not said.get("mean") or not said.get("std"):
        return {}
    channels, height, width = map(int, shape)
    size = height if height == width else [height, width]
    mean, std = (list(map(float, said[key])) for key in ("mean", "std"))
    how = str(said.get("interpolation") or "bilinear")
    return {"image": {"size": size, "mean": mean, "std": std, "interpolation": how, "channels": channels}}


def folder_head(folder: Path, width: int) -> tuple[Tensor, Tensor | None] | None:
    """Weight (classes, width) and bias (classes,) of the linear classifier stored in `folder`; None without one."""
    from safetensors import safe_open

    files = [file for file in (folder / "head.safetensors",) if file.is_file()]
    files += [file for file in weight_files(folder) if file.suffix == ".safetensors"]
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            for head in HEADS:
                if f"{head}.weight" in names:
                    weight = tensors.get_tensor(f"{head}.weight")
                    if weight.ndim == 2 and weight.shape[1] == width:
                        return weight, tensors.get_tensor(f"{head}.bias") if f"{head}.bias" in names else None
    return None

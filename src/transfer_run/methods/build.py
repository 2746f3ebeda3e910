"""From a method's config to the method: import, instantiate, check how the backbone is kept."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.quantised import QUANTISED
from transfer_run.errors import UserError, nearest_names
from transfer_run.methods.base import Method
from transfer_run.targets import load_class
from transfer_run.task import Task

T = TypeVar("T")


WHOLE_BACKBONE = "full"
"""The method that trains and ships all of a backbone: what a folded model is described by."""


def method_class(target: str) -> type[Method]:
    """The class that `about.target` names, `package.module.Class`.

    Raises:
        UserError: the module or the class does not exist, or is no Method.
    """
    found: type[Method] = load_class(target, Method, f"method.about.target: {target}", "method class")
    return found


def method_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the class from its config; a key that is a word of Python gets a `_` (`lambda_`)."""
    return {
        f"{key}_" if keyword.iskeyword(key) else key: value
        for key, value in config.items()
        if key not in ("name", "about")
    }


def check_settings(kind: type[Method], settings: Mapping[str, Any], name: str) -> None:
    """Refuse a key of a method's file that its class does not take, and a file without one that it needs.

    Raises:
        UserError: with the key.
    """
    taken = list(inspect.signature(kind).parameters.values())[2:]  # behind backbone and task
    known = [each.name for each in taken if each.kind is not each.VAR_KEYWORD]
    unknown = [key for key in settings if key not in known] if len(known) == len(taken) else []
    lacking = [each.name for each in taken if each.default is each.empty and each.name in known]
    lacking = [key for key in lacking if key not in settings]
    if unknown or lacking:
        key = (unknown or lacking)[0]
        raise UserError(
            f"The class {kind.__name__} takes no {key!r}." if unknown else f"The class {kind.__name__} needs {key!r}.",
            where=f"method.{key}, in the file of method={name}",
            nearest=nearest_names(key, known) if unknown else (),
            remedy="the keys of the file are the keyword arguments of the class, same names, same defaults",
        )


def build_method(config: Mapping[str, Any], backbone: Backbone, task: Task) -> Method:
    """The method on its backbone, untrained.

    Args:
        config: the `method` node as plain containers: `name`, `about`, and the keyword arguments of the class.

    Raises:
        UserError: the method refuses its settings or the backbone, or is not defined on one that is kept like this.
    """
    kind, settings = method_class(config["about"]["target"]), method_settings(config)
    check_settings(kind, settings, str(config["name"]))
    method: Method = kind(backbone, task, **settings)
    check_storage(method, backbone, str(config["name"]))
    return method


def on_meta(build: Callable[[], T]) -> T:
    """What `build` makes, without memory for it: its tensors on the meta device.

    Raises:
        UserError: `build` refuses its settings.
    """
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, UserError):  # some of peft's layers ask their own new tensors for values: let those be real
        return build()


# ---- who may
def check_storage(method: Any, backbone: Backbone, name: str) -> None:
    """Refuse to keep a backbone in a smaller type or away where the method trains inside it.

    Args:
        name: of the method, which is not recommended in its own place.

    Raises:
        UserError: with the reason.
    """
    load, away = backbone.config.get("load"), backbone.config.get("offload")
    if not (load or away):
        return
    where = f"backbone.load={load}" if load else f"backbone.offload={away}"
    if load in QUANTISED and away:
        raise UserError(
            "8- and 4-bit weights are packed on the GPU; they are not streamed to it.",
            where=f"{where} backbone.offload={away}",
            remedy="choose one of the two (backbone.load=bf16 goes with backbone.offload=cpu)",
        )
    trained = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
    half = [name for name, p in method.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if load and not away and method.beside_half and not half:
        if load in QUANTISED and method.reads_weights:
            raise UserError(
                "This method computes with the backbone's matrices themselves, and those of 8 and 4 bits are packed.",
                where=where,
                remedy="set backbone.load=bf16, or choose a method that adds to what a layer returns, such as lora",
            )
        return
    if method.needs_backbone_gradient or trained:
        inside = f" ({(half or trained)[0]})" if half or trained else ""
        raise UserError(
            f"This method trains inside the backbone{inside}: its weights and gradients are needed whole, in full "
            "precision.",
            where=where,
            remedy=f"choose a method that leaves the backbone alone ({_others(name, 'lst', 'qst', 'unipt')}); without "
            f"backbone.offload also one that trains beside it ({_others(name, 'lora', 'prefix_tuning')})",
        )
    if away and method.asks_inside:
        raise UserError(
            "This method reads the insides of every block and needs them all for backward.",
            where=where,
            remedy=f"choose {_others(name, 'lst', 'qst', 'unipt', 'linear_probe')}, or keep the blocks on the device",
        )


def _others(name: str, *methods: str) -> str:
    """Names to recommend to somebody who has chosen `name`."""
    return ", ".join(method for method in methods if method != name)

"""Putting peft's tuners into the exact modules that canonical part names mean."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError, nearest_names
from transfer_run.methods.tuning.attach.without_values import without_values

ADAPTER = "default"
_OF_SEQUENCES = {"GRALORA", "OFT"}  # their linear layers take no more than (B, L, D), or take that for pictures
_READERS = {"BOFT", "DEFT", "GLORA", "HIRA", "HRA", "LOHA", "LOKR", "PEANUT"}
_ROOT = "model."


def peft_config(tuner: str, settings: Mapping[str, Any]) -> Any:
    """The config object of peft's class `tuner` (`LoraConfig`, `VeraConfig`, ...).

    Raises:
        UserError: peft has no such class, or the class has no such setting.
    """
    config_class = getattr(peft, tuner, None)
    if not (isinstance(config_class, type) and issubclass(config_class, peft.PeftConfig)):
        known = [name for name in dir(peft) if name.endswith("Config")]
        raise UserError(f"peft has no {tuner!r}.", where="method.tuner", nearest=nearest_names(tuner, known))
    fields = set(config_class.__dataclass_fields__)
    unknown = sorted(set(settings) - fields)
    if unknown:
        raise UserError(
            f"peft's {tuner} has no setting {unknown[0]!r}.",
            where=f"method.settings.{unknown[0]}",
            nearest=nearest_names(unknown[0], fields),
        )
    try:
        built = config_class(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"peft's {tuner} refuses its settings: {error}", where="method.settings") from error
    return built


def reads_weights(config: Any) -> bool:
    """Do peft's layers of this kind compute with the frozen matrix itself, not only with what the layer returns?"""
    return config.peft_type.value in _READERS or bool(getattr(config, "use_dora", False))


def inject(backbone: Backbone, config: Any, paths: Sequence[str]) -> BaseTuner:
    """Replace the modules at `paths` (dotted, from the backbone) by peft's, in place; everything else is frozen.

    Only these modules are touched: peft gets whole paths, not the suffixes that it would guess by. Works on the meta
    device too.

    Args:
        config: from `peft_config`.

    Returns:
        peft's tuner around `backbone.model`, which it has already changed; hold it outside the module tree.

    Raises:
        UserError: the tuner does not take such modules, or its settings do not fit their widths.
    """
    config.target_modules = sorted({path.removeprefix(_ROOT) for path in paths})
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = all(isinstance(backbone.get_submodule(path), Conv1D) for path in paths)
    on_meta = next(backbone.model.parameters()).is_meta
    tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        warnings.filterwarnings("error", message=".*Adjusted.*")  # a setting is made to fit, and trains something else
        try:
            with without_values(on_meta):
                tuner: BaseTuner = tuner_class(backbone.model, config, ADAPTER, low_cpu_mem_usage=on_meta)
        except (TypeError, ValueError, NotImplementedError, UserWarning) as error:
            raise UserError(
                f"peft's {type(config).__name__} does not fit {backbone.config.get('name')}: {error}",
                where="method.settings, method.targets, backbone",
                remedy="change the settings, or choose another backbone (most tuners refuse GPT-2's Conv1D)",
            ) from error
    if config.peft_type.value in _OF_SEQUENCES:
        for layer in _layers(backbone):
            if isinstance(layer.get_base_layer(), nn.Linear):
                _as_sequences(layer)
    if backbone.in_bf16:
        _widen(backbone, tuner)
    return tuner


def _layers(backbone: Backbone) -> list[Any]:
    return [module for module in backbone.model.modules() if isinstance(module, BaseTunerLayer)]


def _as_sequences(layer: nn.Module) -> None:
    """Inputs (..., L, D) of more than three dimensions pass `layer` as (B, L, D)."""
    shapes: list[torch.Size] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(args[0].shape)
        return (args[0].flatten(0, -3) if args[0].dim() > 3 else args[0], *args[1:])

    def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = shapes.pop()
        return output.unflatten(0, shape[:-2]) if len(shape) > 3 else output

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)


def _widen(backbone: Backbone, tuner: BaseTuner) -> None:
    """peft gives its layers the frozen weights' type: trained weights, shared bases and norms go to float32, as peft
    itself does around a whole model. What a layer returns goes on in the stream's type."""
    tuner._cast_adapter_dtype(ADAPTER)
    for parameter in backbone.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for layer in _layers(backbone):
        if not isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
            layer.register_forward_pre_hook(_in_float32)  # CUDA's norms want one type for all that they read
        layer.register_forward_hook(_in_stream)


def _in_float32(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].float(), *args[1:])


def _in_stream(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.bfloat16()


def unload(backbone: Backbone) -> None:
    """Fold what peft's layers learned into the weights: the backbone's model is the library's plain model again.

    Raises:
        ValueError, NotImplementedError: from peft, of a tuner whose layers are no change of the weights.
    """
    for path, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(path, module.get_base_layer())


def save_peft(
    backbone: Backbone, folder: Path, *, shared: nn.ModuleDict | None = None, settings: Mapping[str, Any] | None = None
) -> bool:
    """Write what peft's layers learned as peft does: adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(model, folder)` loads it onto the library's own model.

    Args:
        shared: what the layers share, as the method keeps it.
        settings: of peft's config, where the adapter holds more than was injected.

    Returns:
        False where the model is not a plain one with peft's layers in it, or peft would not keep all that was trained:
        nothing is written.
    """
    configs = getattr(backbone.model, "peft_config", None)
    if not configs:
        return False
    config = copy.deepcopy(configs[ADAPTER])
    for name, value in (settings or {}).items():
        setattr(config, name, value)
    plain = build_backbone(backbone.config, weights=False).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel(plain, config, ADAPTER)
        tensors = {f"base_model.model.{name}": tensor for name, tensor in backbone.model.state_dict().items()}
        tensors |= {f"base_model.{name}": tensor for name, tensor in (shared or nn.ModuleDict()).state_dict().items()}
        state = model.state_dict()
        if state.keys() != tensors.keys() or any(state[n].shape != tensors[n].shape for n in state):
            return False
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(tensor)
        kept = peft.get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        trained = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
        if any(f"base_model.model.{name}" not in kept for name in trained if ADAPTER not in name.split(".")):
            return False  # peft keeps no tables of relative position biases, which `bias=all` trains
        model.peft_config[ADAPTER].base_model_name_or_path = None
        model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a model card without any content
    return True

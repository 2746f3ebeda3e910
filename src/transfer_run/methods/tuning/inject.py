"""Putting peft's tuners into the exact modules that canonical part names mean."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError, nearest_names

ADAPTER = "default"
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
        try:
            return tuner_class(backbone.model, config, ADAPTER, low_cpu_mem_usage=on_meta)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"peft's {type(config).__name__} does not fit {backbone.config.get('name')}: {error}",
                where="method.settings, method.targets, backbone",
                remedy="change the settings, or choose another backbone (most tuners refuse GPT-2's Conv1D)",
            ) from error

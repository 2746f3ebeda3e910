"""The settings of a model that decide what it computes: of a folder's config.json, beside those of a backbone's config.

Two models of equal shapes may compute different things (heads, rotary bases, the constant of a norm, an activation), so
shapes alone do not say that weights fit. A setting that only training reads (dropout, the spread of new weights) may
differ, and so may what the library keeps beside (labels, caches, token ids).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from transfer_run.backbones.declared import family_that_loads
from transfer_run.backbones.weights.files import stored_config
from transfer_run.errors import UserError

TIED = "tie_word_embeddings"
UNDECLARED = {"decoder_start_token_id", TIED, "position_buckets", "norm_rel_ebd", "share_att_key"}
"""Settings that the library's models read although their config classes do not declare them."""
FREE = (
    "*drop*", "*init*", "use_cache", "summary_*", "pretraining_tp", "max_window_layers", "legacy", "*_token_id",
    "decoder_*", "pooler_*", "classifier_*", "scale_decoder_outputs", "gradient_checkpointing", TIED,
)  # fmt: skip
"""What cannot change what a trained model computes of its inputs; the decoder of a model that is read as an encoder;
`pooler_*` is of poolers that we never build."""


@cache
def _common() -> frozenset[str]:
    from transformers import PretrainedConfig

    return frozenset(PretrainedConfig().to_dict())


def declared(config: Any) -> dict[str, Any]:
    """The settings that the class of a transformers config declares, with their values; parts of it as dicts."""
    values, known = config.to_dict(), set(type(config)().to_dict()) | UNDECLARED
    parts = [key for key in getattr(config, "sub_configs", {}) if key in values]
    own = {key: values[key] for key in sorted(known & values.keys() - _common() - set(parts))}
    return own | {key: declared(getattr(config, key)) for key in parts}


def computing(config: Any, also: Sequence[str] = ()) -> dict[str, Any]:
    """Of these, those that decide what the model computes, by dotted key.

    Args:
        also: names of `FREE` that matter to this model: `tie_word_embeddings` where it has a language head.
    """
    found: dict[str, Any] = {}
    for key, value in declared(config).items():
        if key in getattr(config, "sub_configs", {}):
            found |= {f"{key}.{below}": each for below, each in computing(getattr(config, key), also).items()}
        elif key in also or not any(fnmatchcase(key, pattern) for pattern in FREE):
            found[key] = value
    if "roberta" in str(config.model_type):  # positions begin behind the padding id
        found["pad_token_id"] = config.pad_token_id
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The settings that are not the same in both: name, value in one, value in the other."""
    names = sorted(one.keys() | other.keys())
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def refuse_others(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """The folder's settings against ours.

    Raises:
        UserError: naming those that differ.
    """
    if differing := differences(there, here):
        named = "; ".join(f"{name} is {theirs!r} there, {ours!r} here" for name, theirs, ours in differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UserError(
            f"The weights are of a model with other settings than the backbone's: {named}{more}.",
            where=f"{folder / 'config.json'}, backbone.architecture",
            remedy="backbone.architecture=folder takes all settings of the folder; or choose the backbone that goes "
            "with these weights",
        )


def library_config(folder: Path) -> Any | None:
    """The transformers config of a folder; None where it has none that the library knows.

    Raises:
        UserError: the library refuses one of its settings.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if not (folder / "config.json").is_file():
        return None
    stored = stored_config(folder)
    kind = str(stored.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[kind].from_dict(stored)
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"transformers refuses the folder's settings: {' '.join(str(error).split())}.",
            where=str(folder / "config.json"),
            remedy="mend the setting, or copy the file again",
        ) from error


def folder_computing(folder: Path) -> dict[str, Any]:
    """What the model in a folder computes by its config.json; empty where that is not known.

    The length of a vocabulary is told by its tensor, which may have lost rows of padding.
    """
    config = library_config(folder) if folder.is_dir() else None
    if config is not None:
        return {key: value for key, value in computing(config).items() if key.rpartition(".")[2] != "vocab_size"}
    stored = stored_config(folder) if (folder / "config.json").is_file() else {}
    if "architecture" not in stored:
        return {}
    return {"architecture": stored["architecture"], **(stored.get("model_args") or {}), "num_classes": None}


def folder_architecture(folder: Path) -> dict[str, Any]:
    """`backbone.architecture` as the config.json in a folder has it.

    Raises:
        UserError: there is none, or of no library that we read.
    """
    stored = stored_config(folder)
    if "architecture" in stored:  # timm
        given = {key: value for key, value in (stored.get("model_args") or {}).items() if key != "num_classes"}
        found = family_that_loads("timm", str(stored["architecture"]))
        other: dict[str, Any] | None = None if found is None else found[1].get("architecture")
        return {"model": stored["architecture"], **given} if other is None else other
    config = library_config(folder)
    if config is None:
        raise UserError(
            "The folder's config.json is of no model of transformers or timm.",
            where=str(folder / "config.json"),
            remedy="name a folder that holds one, or the settings: backbone.architecture.KEY=VALUE",
        )
    return {"model_type": stored["model_type"], **declared(config), TIED: _tied(stored, config)}


def _tied(stored: Mapping[str, Any], config: Any) -> bool:
    """Is the language head the table of tokens? T5's config keeps under another name what v1.1 says of it."""
    return bool(stored.get("scale_decoder_outputs", stored.get(TIED, getattr(config, TIED, True))))


def ties_head(folder: Path) -> bool | None:
    """Does a folder's model take its table of tokens for its language head? None where its settings are unknown."""
    config = library_config(folder) if folder.is_dir() else None
    return None if config is None else _tied(stored_config(folder), config)


# ---- timm
def refuse_other_timm(model: nn.Module, folder: Path) -> None:
    """A timm model against the one that the folder's config.json names: heads, activations and norms.

    Images of another size or with other channels, and another pooling, are ours to choose.

    Raises:
        UserError: naming what differs.
    """
    import timm
    import torch

    stored = stored_config(folder) if (folder / "config.json").is_file() else {}
    name = str(stored.get("architecture"))
    if not timm.is_model(name):
        return
    given = {key: value for key, value in (stored.get("model_args") or {}).items() if key != "num_classes"}
    with torch.device("meta"):
        theirs = _computing(timm.create_model(name, pretrained=False, num_classes=0, **given))
    ours = _computing(model)
    shared = theirs.keys() & ours.keys()
    refuse_others({key: theirs[key] for key in shared}, {key: ours[key] for key in shared}, folder)


def _computing(model: nn.Module) -> dict[str, Any]:
    """Of every module without parameters of its own shapes what it computes: heads, kind of activation, eps."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if isinstance(getattr(module, "num_heads", None), int):
            found[f"{path}.num_heads"] = module.num_heads
        if isinstance(getattr(module, "eps", None), float):
            found[f"{path}.eps"] = module.eps
        if path.rpartition(".")[2].startswith("act"):
            found[path] = type(module).__name__
    return found

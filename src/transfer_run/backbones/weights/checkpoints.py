"""Models of transformers and timm: built from an architecture, or read from a folder and checked against it.

No pickle is executed: safetensors, or PyTorch's restricted loader for old `pytorch_model.bin` files. No remote code.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfer_run.backbones.weights.files import (
    WRAPPERS,
    refuse_codes,
    refuse_quantised,
    stored_config,
    weight_files,
    without_wrapper,
)
from transfer_run.backbones.weights.headers import WIDE, narrow, readable
from transfer_run.backbones.weights.settings import UNDECLARED, computing, refuse_other_timm, refuse_others
from transfer_run.errors import UserError, nearest_names

_WRAPPED = "^(" + "|".join(map(re.escape, WRAPPERS)) + ")+"
DISPENSABLE = {
    "lm_head": "a classifier needs no language head: backbone.architecture.tie_word_embeddings=true asks for none",
    "pooler": "backbone.pooling=cls or backbone.pooling=mean needs no pooler",
}
"""Parts that weights may lack, and the word that does without."""
OF_DIVERGED = "lower optimizer.lr, lengthen optimizer.warmup, or set trainer.gradient_clip"
"""What helps a run that diverged."""


# ---- transformers
def new_transformer(model_class: Any, architecture: Mapping[str, Any] | None, **kwargs: Any) -> Any:
    """A randomly initialised model of `model_class`; `architecture` holds keyword arguments of its config class.

    Raises:
        UserError: no architecture, or a word in it that the config class does not know.
    """
    return model_class(model_class.config_class(**_known(model_class, architecture)), **kwargs)


def read_transformer(
    model_class: Any,
    folder: Path,
    architecture: Mapping[str, Any] | None,
    spare: tuple[str, ...] = (),
    also: Sequence[str] = (),
    **kwargs: Any,
) -> Any:
    """The model that `folder` holds (config.json and weights), in float32.

    Args:
        architecture: what the weights must fit, and settings that override the folder's (dropout, ...); None takes
            the folder's architecture as it is.
        spare: names of the model's parts that may be missing.
        also: settings in which the folder may not differ either (`computing`).

    Raises:
        UserError: no model there, one of another kind or with other settings, or tensors that are missing or of another
            shape.
    """
    stored = stored_config(folder)
    kind = model_class.config_class.model_type
    if stored.get("model_type") != kind:
        raise UserError(
            f"The weights are of a model of type {stored.get('model_type')!r}, the backbone is of type {kind!r}.",
            where=str(folder / "config.json"),
            remedy="choose the backbone that goes with these weights",
        )
    refuse_quantised(folder)
    for file in weight_files(folder):
        refuse_codes(narrow(file), str(file))
    if not weight_files(folder):
        raise UserError(
            "The folder holds no weights (model.safetensors).",
            where=str(folder),
            remedy="name a folder written by save_pretrained or by `hf download`",
        )
    overrides = {} if architecture is None else _known(model_class, architecture)
    config_class = model_class.config_class
    with _meant(folder):
        if architecture is not None:
            there = computing(config_class.from_dict(stored), also)
            refuse_others(there, computing(config_class(**overrides), also), folder)
        config = config_class.from_pretrained(str(folder), **overrides)
    mapping = {_WRAPPED: "", **(kwargs.pop("key_mapping", None) or {})}
    with _quiet(), readable(folder):
        model, info = model_class.from_pretrained(
            str(folder), config=config, dtype=torch.float32, local_files_only=True, weights_only=True,
            use_safetensors=weight_files(folder)[0].suffix == ".safetensors",
            ignore_mismatched_sizes=True, output_loading_info=True, key_mapping=mapping, **kwargs,
        )  # fmt: skip
    wrong = [f"{name}: {tuple(there)} in the file, {tuple(here)} here" for name, there, here in info["mismatched_keys"]]
    missing = [name for name in info["missing_keys"] if not name.startswith(spare)] if spare else info["missing_keys"]
    _refuse_misfit(folder, wrong, () if wrong else missing)
    return model


def _known(model_class: Any, architecture: Mapping[str, Any] | None) -> dict[str, Any]:
    """The architecture without `model_type`, every word of it known to the config class."""
    if architecture is None:
        raise UserError(
            "This backbone has no architecture of its own: it takes that of its weights.",
            where="backbone.architecture",
            remedy="backbone.weights=PATH with a folder that holds config.json and weights",
        )
    words = {key: value for key, value in architecture.items() if key != "model_type"}
    empty = model_class.config_class()
    valid = set(empty.to_dict()) | set(empty.attribute_map) | UNDECLARED
    for key in words:
        if key not in valid:
            raise UserError(
                f"{model_class.__name__} has no setting {key!r}.",
                where=f"backbone.architecture.{key}",
                nearest=nearest_names(key, valid),
            )
    return words


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's report of unused heads; what matters is checked and raised here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


# ---- timm
def new_timm(architecture: Mapping[str, Any]) -> nn.Module:
    """A randomly initialised timm model without a classifier; `architecture` is `model` and keyword arguments.

    Raises:
        UserError: a model or a setting that timm does not know.
    """
    import timm

    words: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
    name = str(words.pop("model"))
    if not timm.is_model(name):
        raise UserError(
            f"timm has no model {name!r}.",
            where="backbone.architecture.model",
            nearest=nearest_names(name, timm.list_models()),
        )
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **words)
    except TypeError as error:
        raise UserError(f"timm's {name} cannot be built: {error}", where="backbone.architecture") from error


def read_timm(
    model: nn.Module, path: Path, renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
) -> tuple[Tensor, Tensor] | None:
    """Fill `model`, which has no classifier, from a timm folder or a .safetensors file.

    Position embeddings of another grid and first convolutions of another number of channels are adapted as timm does.

    Args:
        renamed: gives tensors of another library timm's names.

    Returns:
        The pretrained classifier's weight (classes, features) and bias (classes,), where the file has one.

    Raises:
        UserError: no weights there, or tensors that are missing or of another shape.
    """
    from timm.models import adapt_input_conv
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    tensors = renamed(read_tensors(path))
    refuse_other_timm(model, path if path.is_dir() else path.parent)
    if isinstance(model, VisionTransformer):
        try:
            tensors = checkpoint_filter_fn(tensors, model)
        except (RuntimeError, ValueError, KeyError) as error:  # of timm, which resamples what it takes for positions
            placed, own = tensors.get("pos_embed"), model.pos_embed
            there, here = ("none" if each is None else tuple(each.shape) for each in (placed, own))
            tokens = "cls_token " + ("there" if "cls_token" in tensors else "not there")
            raise UserError(
                f"The positions of the weights do not fit the backbone's: {there} in the file, {here} here; {tokens}.",
                where=str(path),
                remedy="say what the model has: backbone.architecture.class_token=false "
                "backbone.architecture.global_pool=avg of one without class token, its img_size and patch_size",
            ) from error
    settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    stem, wanted = f"{settings.get('first_conv')}.weight", model.state_dict()
    if stem in tensors and tensors[stem].shape[1] != wanted[stem].shape[1]:
        tensors[stem] = adapt_input_conv(wanted[stem].shape[1], tensors[stem])
    names = settings.get("classifier")  # of a distilled DeiT two, one a token
    heads = [names] if isinstance(names, str) else list(names or ())
    found = [(tensors.pop(f"{head}.weight", None), tensors.pop(f"{head}.bias", None)) for head in heads]
    fill(model, tensors, path)
    alone = found[0] if len(found) == 1 else (None, None)
    return alone if alone[0] is not None and alone[1] is not None else None  # type: ignore[return-value]


def save_timm(model: Any, architecture: Mapping[str, Any], folder: Path) -> None:
    """Write a model as timm does: config.json and safetensors, which `create_model("local-dir:FOLDER")` reads."""
    from timm.models import save_for_hf

    arguments = {key: value for key, value in architecture.items() if key != "model"}
    settings: dict[str, Any] = dict(model.pretrained_cfg)
    for key in ("mean", "std"):  # timm's are those of colours: one value for all where the channels are others
        if len(settings[key]) not in (1, arguments.get("in_chans", 3)):
            settings[key] = (sum(settings[key]) / len(settings[key]),)
    model.pretrained_cfg = settings
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of all those of a folder; UserError where there are none, or damaged."""
    from safetensors.torch import load_file

    files = [path] if path.is_file() else weight_files(path)
    if not files:
        raise UserError(
            "There are no weights (model.safetensors).",
            where=str(path),
            remedy="name a .safetensors file or a folder that holds model.safetensors",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        with readable(file):
            safe = file.suffix == ".safetensors"
            read = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
            state = _state(read, file)
        refuse_codes((name for name, tensor in state.items() if tensor.dtype not in WIDE), str(file))
        tensors |= state
    return {without_wrapper(name): tensor for name, tensor in tensors.items()}


STATES = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Where training programs put the tensors in the file of a checkpoint, beside epochs and optimizers."""


def _state(read: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of what was read from a file.

    Raises:
        UserError: there are none.
    """
    inner = read
    if isinstance(read, Mapping):
        inner = next((read[key] for key in STATES if isinstance(read.get(key), Mapping)), read)
    if isinstance(inner, Mapping) and inner and all(isinstance(tensor, Tensor) for tensor in inner.values()):
        return dict(inner)
    raise UserError(
        "The file holds no table of tensors.",
        where=str(file),
        remedy=f"save model.state_dict() alone, or below one of {', '.join(STATES)}",
    )


# ---- both
@contextlib.contextmanager
def _meant(folder: Path) -> Iterator[None]:
    """One clear error for a config.json that the library does not take."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, TypeError, ValueError, ArithmeticError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"The config of the weights is refused: {reason}.",
            where=str(folder / "config.json"),
            remedy="mend the file",
        ) from error


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy `tensors` into `model`; all of the model's must be there (tied ones once), others are refused.

    Raises:
        UserError: naming the tensors that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    wrong = [
        f"{name}: {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} here"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    needed = {name for name, _ in (*model.named_parameters(), *model.named_buffers()) if name in own}
    filled: dict[int, str] = {}
    for name in sorted(tensors.keys() & own.keys()):
        first = filled.setdefault(own[name].data_ptr(), name)
        if not torch.equal(tensors[first], tensors[name]):
            wrong.append(f"{first} and {name}: two tensors in the file, one and the same here")
    missing = [name for name in needed - tensors.keys() if own[name].data_ptr() not in filled]
    _refuse_misfit(path, wrong, missing, tensors.keys() - own.keys())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _refuse_misfit(path: Path, wrong: list[str], missing: Iterable[str], unknown: Iterable[str] = ()) -> None:
    said, missing, unknown = [], list(missing), list(unknown)
    for what, names in (("of another shape", wrong), ("missing", sorted(missing)), ("unknown", sorted(unknown))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(f"{len(names)} {what} ({'; '.join(names[:3])}{more})")
    if said:
        parts = {name.partition(".")[0] for name in missing} if not wrong and not unknown else set()
        remedies = [remedy for part, remedy in DISPENSABLE.items() if parts == {part}]
        raise UserError(
            f"The weights do not fit the backbone's architecture: tensors {', '.join(said)}.",
            where=str(path),
            remedy="; ".join(
                [*remedies, "choose the backbone that goes with these weights, or change backbone.architecture"]
            ),
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a value which is infinite or no number; nothing as large as they are is made.

    Quantised and whole numbers are finite.
    """
    floating = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dtype.itemsize > 1 and t.numel()}
    if not floating:
        return []
    ends = torch.stack([torch.stack(torch.aminmax(t.detach())).isfinite().all().cpu() for t in floating.values()])
    return [name for name, good in zip(floating, ends.tolist(), strict=True) if not good]


def refuse_not_finite(tensors: Mapping[str, Tensor], place: Path | str) -> None:
    """Weights that are infinite or no numbers are nobody's to use.

    Raises:
        UserError: naming some of them.
    """
    if broken := not_finite(tensors):
        raise UserError(
            f"The weights hold values that are no finite numbers ({', '.join(broken[:3])}): the run that made them has "
            "diverged, or the file is damaged.",
            where=str(place),
            remedy=f"fetch or copy them again; carry such a run out again with other settings: {OF_DIVERGED}",
        )


def checksum(model: nn.Module) -> str:
    """SHA-256 over all tensors of the model (names, types, shapes, bytes), whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"

"""Adapters as checkpoints: what a LoRA changes in the weights it stands on, without making the changed model.

(IA)^3 vectors, and LoRA's factors beside their saved start, are ordinary tensors and need nothing of this.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.weights.files import adapter_config
from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, Entry, SafetensorsCheckpoint, open_checkpoint
from transfer_run.methods.merging.engine.names import same_names
from transfer_run.methods.merging.engine.tied import HEAD, UNTIE, VOCABULARY, speaks_by_its_table

ADDS_MORE = (
    "use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "layer_replication", "target_parameters", "lora_bias",
)  # fmt: skip
"""Settings of peft's LoRA with which the adapted weight is not W + s B A."""
OTHER_START = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that take something off W when the adapter is made: its file alone does not say what."""
TRANSPOSED = ("c_attn", "c_proj", "c_fc", "q_attn")
"""What transformers calls its Conv1D layers, whose weight is (in, out)."""
SCALES = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings that say what a change is made of its factors."""
ROWS = 128  # rows of a change computed at a time; fixed, so that the piece size does not change the matrix products
MERGED_BY_PEFT = "make the whole model with peft (merge_and_unload, then save_pretrained) and name that"


@dataclass(frozen=True)
class _Change:
    """The factors of one weight: s * B A, laid out (rows, columns) like the weight."""

    left: str  # (rows, rank), or (rank, rows) if `transposed`
    right: str  # (rank, columns), or (columns, rank) if `transposed`
    scale: float
    transposed: bool = False


class LoraCheckpoint(Checkpoint):
    """A base model with a LoRA folder (peft's format) applied, computed as it is read.

    Args:
        base: the full model; its names are the adapter's without peft's `base_model.model.` prefix.
        folder: `adapter_config.json` and `adapter_model.safetensors`.
        exclude: regular expressions of tensors that are not merged: what the adapter has of them is not asked for.

    Raises:
        UserError: an adapter of another kind, one that lacks a factor, or one that changes weights the base does not
            have, or has in another shape.
    """

    def __init__(self, base: Checkpoint, folder: str | Path, exclude: Sequence[str] = ()) -> None:
        config = adapter_config(Path(folder).expanduser()) or {}
        _refuse_other_kinds(config, folder)
        self.where, self.base, self.entries = str(folder), base, dict(base.entries)
        self._adapter: SafetensorsCheckpoint = open_checkpoint(folder)
        factors, whole = self._sorted()
        named = same_names([*(f"{module}.weight" for module in factors), *whole], base.entries)
        lost = sorted(new for new in named.values() if new not in base.entries)
        _refuse_one_of_two_uses(self, [n for n in named.values() if not any(re.match(p, n) for p in exclude)], config)
        left_out = {new for new in lost if any(re.match(pattern, new) for pattern in exclude)}
        if set(lost) - left_out:
            raise UserError(
                f"The adapter changes {len(lost)} tensors that the base does not have.",
                where=f"{folder}: {', '.join(lost[:6])}; {base.where}",
                remedy="name the base model that the adapter was trained on; leave its task head out: "
                "method.exclude=['score.*','classifier.*']",
            )
        self._whole = {named[name]: raw for name, raw in whole.items() if named[name] not in left_out}
        self._changes = {
            named[f"{module}.weight"]: self._change(module, parts, named[f"{module}.weight"], config)
            for module, parts in factors.items()
            if named[f"{module}.weight"] not in left_out
        }
        self.changed = frozenset(self._changes) | frozenset(self._whole)
        self.entries |= {name: self._adapter.entries[raw] for name, raw in self._whole.items()}

    def _sorted(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """The factors A and B by module, and what the adapter stores in full (modules_to_save, biases, the weights
        below an adapted embedding), each with its name in the file."""
        factors: dict[str, dict[str, str]] = defaultdict(dict)
        whole = {}
        for raw in self._adapter.entries:
            name = raw.removeprefix("base_model.model.").replace(".default.", ".").removesuffix(".default")
            if found := re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name):
                factors[found[1]][f"{found[2] or ''}{found[3]}"] = raw
            else:
                whole[name.replace(".modules_to_save", "").replace(".base_layer", "")] = raw
        halves = sorted(module for module, parts in factors.items() if len(parts) != 2)
        if halves:
            raise UserError(
                f"The adapter lacks a factor (lora_A or lora_B) of {len(halves)} of its {len(factors)} changes.",
                where=f"{self.where}: {', '.join(halves[:4])}",
                remedy="copy or download the adapter again",
            )
        return factors, whole

    def _change(self, module: str, parts: Mapping[str, str], weight: str, config: Mapping[str, Any]) -> _Change:
        """The change of a weight, its orientation as the base's module has it, whatever the adapter says of all."""
        embedding = any(name.startswith("embedding") for name in parts)
        a, b = (parts[f"embedding_{name}" if embedding else name] for name in "AB")
        inside, outside = (self._adapter.entries[raw].shape for raw in (a, b))
        shape, scale = self.base.entries[weight].shape, _scale(config, module, inside[0])
        there, plain = (shape[0], math.prod(shape[1:])), (outside[0], math.prod(inside[1:]))
        flip = embedding or _is_transposed(weight, self.base.entries)  # then the weight is A^T B^T
        if len(shape) < 2 or inside[0] != outside[1] or there != (plain[::-1] if flip else plain):
            raise UserError(
                f"The adapter does not fit its base: {weight} is {list(shape)} there, and the factors are "
                f"B {list(outside)}, A {list(inside)}.",
                where=f"{self.where}; {self.base.where}",
                remedy="name the base model that the adapter was trained on",
            )
        return _Change(a, b, scale, True) if flip else _Change(b, a, scale)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        whole = self._whole.get(name)
        values = self.base.read(name, start, stop) if whole is None else self._adapter.read(whole, start, stop)
        return values if name not in self._changes else values.float().add_(self._update(name, start, stop))

    def difference(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        if name in self._whole:
            return super().difference(name, start, stop, base)
        return self._update(name, start, stop).to(base.dtype) if name in self._changes else torch.zeros_like(base)

    def _update(self, name: str, start: int, stop: int) -> Tensor:
        """s * B A at elements `start` to `stop`, in float32."""
        change, shape = self._changes[name], self.entries[name].shape
        columns = math.prod(shape[1:])
        right = self._factor(change.right, change.transposed)
        first, last = start // columns // ROWS * ROWS, math.ceil(stop / columns)
        left = self._factor(change.left, change.transposed)
        rows = [left[at : at + ROWS] @ right * change.scale for at in range(first, last, ROWS)]
        return torch.cat(rows).view(-1)[start - first * columns : stop - first * columns]

    def _factor(self, raw: str, transposed: bool) -> Tensor:
        """One factor as a matrix; a convolution's is flattened."""
        entry = self._adapter.entries[raw]
        matrix = self._adapter.read(raw, 0, entry.numel).float()
        if transposed:
            return matrix.view(entry.shape[0], -1).T
        return matrix.view(entry.shape[0], -1)


def _is_transposed(weight: str, entries: Mapping[str, Entry]) -> bool:
    """Is the layer transformers' Conv1D, (in, out)? Its name says it may be, and the biases of such layers that are
    not square say how they lie."""

    def may_be(name: str) -> bool:
        return name.endswith(".weight") and name.split(".")[-2] in TRANSPOSED

    for name, entry in entries.items() if may_be(weight) else ():
        bias = entries.get(f"{name.removesuffix('weight')}bias")
        if may_be(name) and len(entry.shape) == 2 and bias is not None and entry.shape[0] != entry.shape[1]:
            return bias.shape == entry.shape[1:]
    return False


def check_factors(folders: Sequence[Path]) -> None:
    """Refuse to merge the factors of adapters that make their changes of them in other ways.

    Raises:
        UserError: naming the setting in which two adapters differ.
    """
    settings = [(folder, adapter_config(folder) or {}) for folder in folders]
    for folder, config in settings[1:]:
        first, known = settings[0]
        for key in SCALES:
            if (known.get(key) or None) != (config.get(key) or None):
                raise UserError(
                    f"The adapters' factors cannot be merged one by one: {key} is {known.get(key)!r} in one and "
                    f"{config.get(key)!r} in another, so they do not mean the same change.",
                    where=f"{first}; {folder}",
                    remedy="merge their changes: method.base=FOLDER of the full model that they stand on",
                )


def _refuse_other_kinds(config: Mapping[str, Any], folder: str | Path) -> None:
    """Only W + s B A on the base's own W is what this file computes."""
    more = [key for key in ADDS_MORE if config.get(key)]
    start = str(config.get("init_lora_weights", "")).lower()
    if config.get("peft_type") != "LORA" or more:
        kind = "DoRA" if "use_dora" in more else f"LoRA with {more[0]}" if more else config.get("peft_type")
        others = (
            "" if more else ", or merge such adapters themselves: method.base=ones for (IA)^3, else their saved start"
        )
        raise UserError(
            f"{kind} does not add to the weights of a full model.",
            where=str(folder),
            remedy=MERGED_BY_PEFT + others,
        )
    if start.startswith(OTHER_START):
        raise UserError(
            f"This adapter stands on weights that its initialisation ({start}) changed, not on the base's own.",
            where=str(folder),
            remedy="save it as a plain LoRA: save_pretrained(path_initial_model_for_weight_conversion=...) of peft",
        )


def _refuse_one_of_two_uses(adapter: LoraCheckpoint, names: Sequence[str], config: Mapping[str, Any]) -> None:
    """Where head and table of tokens are one tensor, an adapter changes one of its two uses: no tensor is the sum.

    Raises:
        UserError: an adapter of a tied language model changes either.
    """
    touched = [name for name in names if HEAD.search(name) or VOCABULARY.search(name)]
    if touched and speaks_by_its_table(Path(adapter.base.where), config.get("task_type")):
        raise UserError(
            "The base's table of tokens is its language head, too, and the adapter changes one of these uses alone.",
            where=f"{adapter.where}: {', '.join(touched)}; {adapter.base.where}",
            remedy=f"name an untied copy of the base; {UNTIE}",
        )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) (rsLoRA), with peft's per-module patterns: regular expressions, the first wins.

    Args:
        rank: of the stored factors, which is what `rank_pattern` made of r.
    """
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise UserError("The adapter's settings name no lora_alpha.", where=module, remedy="copy the adapter again")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

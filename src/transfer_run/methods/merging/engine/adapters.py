"""Adapters as checkpoints: what a LoRA changes in the weights it stands on, without making the changed model.

(IA)^3 vectors, and LoRA's factors beside their saved start, are ordinary tensors and need nothing of this.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, SafetensorsCheckpoint, open_checkpoint

CONFIG = "adapter_config.json"
ADDS_MORE = (
    "use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "layer_replication", "target_parameters",
)  # fmt: skip
"""Settings of peft's LoRA with which the adapted weight is not W + s B A."""
OTHER_START = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that take something off W when the adapter is made: its file alone does not say what."""
ROWS = 128  # rows of a change computed at a time; fixed, so that the piece size does not change the matrix products


@dataclass(frozen=True)
class _Change:
    """The factors of one weight: s * B A, laid out (rows, columns) like the weight."""

    left: str  # (rows, rank), or (rank, rows) if `left_transposed`
    right: str  # (rank, columns), or (columns, rank) if `right_transposed`
    scale: float
    left_transposed: bool = False
    right_transposed: bool = False


def adapter_config(folder: str | Path) -> dict[str, Any] | None:
    """peft's settings of an adapter folder; None when it is none."""
    path = Path(folder).expanduser() / CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class LoraCheckpoint(Checkpoint):
    """A base model with a LoRA folder (peft's format) applied, computed as it is read.

    Args:
        base: the full model; its names are the adapter's without peft's `base_model.model.` prefix.
        folder: `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        UserError: an adapter of another kind, or one that changes weights the base does not have.
    """

    def __init__(self, base: Checkpoint, folder: str | Path) -> None:
        config = adapter_config(folder) or {}
        _refuse_other_kinds(config, folder)
        self.where, self.base, self.entries = str(folder), base, dict(base.entries)
        self._adapter: SafetensorsCheckpoint = open_checkpoint(folder)
        self._changes: dict[str, _Change] = {}
        self._whole: dict[str, str] = {}  # tensors that the adapter stores in full (modules_to_save, biases)
        for raw in self._adapter.entries:
            self._place(raw, config)
        self.changed = frozenset(self._changes) | frozenset(self._whole)
        lost = sorted(self.changed - base.entries.keys())
        if lost:
            raise UserError(
                f"The adapter changes {len(lost)} tensors that the base does not have.",
                where=f"{folder}: {', '.join(lost[:6])}; {base.where}",
                remedy="name the base model that the adapter was trained on",
            )
        for name in self._whole:
            self.entries[name] = self._adapter.entries[self._whole[name]]

    def _place(self, raw: str, config: dict[str, Any]) -> None:
        """File a tensor of the adapter under the weight it belongs to."""
        name = raw.removeprefix("base_model.model.").replace(".default.", ".").removesuffix(".default")
        if ".lora_A." in name or ".lora_embedding_A" in name:
            return  # found through its B
        for mark, embedding in ((".lora_B.weight", False), (".lora_embedding_B", True)):
            if name.endswith(mark):
                module = name.removesuffix(mark)
                other = raw.replace("lora_embedding_B", "lora_embedding_A").replace("lora_B", "lora_A")
                rank = self._adapter.entries[other].shape[0]
                scale = _scale(config, module, rank)
                # a Conv1D weight (in, out) and an embedding (tokens, width) are A^T B^T
                flip = embedding or bool(config.get("fan_in_fan_out"))
                self._changes[f"{module}.weight"] = (
                    _Change(other, raw, scale, True, True) if flip else _Change(raw, other, scale)
                )
                return
        self._whole[name.replace(".modules_to_save", "").replace(".base_layer", "")] = raw

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._whole:
            return self._adapter.read(self._whole[name], start, stop)
        values = self.base.read(name, start, stop)
        return values if name not in self._changes else values.float().add_(self._update(name, start, stop))

    def difference(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        if name in self._whole:
            return super().difference(name, start, stop, base)
        return self._update(name, start, stop).to(base.dtype) if name in self._changes else torch.zeros_like(base)

    def _update(self, name: str, start: int, stop: int) -> Tensor:
        """s * B A at elements `start` to `stop`, in float32."""
        change, shape = self._changes[name], self.entries[name].shape
        columns = math.prod(shape[1:])
        right = self._factor(change.right, change.right_transposed)
        first, last = start // columns // ROWS * ROWS, math.ceil(stop / columns)
        left = self._factor(change.left, change.left_transposed)
        rows = [left[at : at + ROWS] @ right * change.scale for at in range(first, last, ROWS)]
        return torch.cat(rows).view(-1)[start - first * columns : stop - first * columns]

    def _factor(self, raw: str, transposed: bool) -> Tensor:
        """One factor as a matrix; a convolution's is flattened."""
        entry = self._adapter.entries[raw]
        matrix = self._adapter.read(raw, 0, entry.numel).float()
        if transposed:
            return matrix.view(entry.shape[0], -1).T
        return matrix.view(entry.shape[0], -1)


def _refuse_other_kinds(config: dict[str, Any], folder: str | Path) -> None:
    """Only W + s B A on the base's own W is what this file computes."""
    more = [key for key in ADDS_MORE if config.get(key)]
    start = str(config.get("init_lora_weights", "")).lower()
    if config.get("peft_type") != "LORA" or more:
        kind = "DoRA" if "use_dora" in more else more[0] if more else config.get("peft_type")
        raise UserError(
            f"{kind} does not add to the weights of a full model.",
            where=str(folder),
            remedy="merge the adapters themselves: method.base=ones for (IA)^3, else the adapter's saved start",
        )
    if start.startswith(OTHER_START):
        raise UserError(
            f"This adapter stands on weights that its initialisation ({start}) changed, not on the base's own.",
            where=str(folder),
            remedy="save it as a plain LoRA: save_pretrained(path_initial_model_for_weight_conversion=...) of peft",
        )


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) (rsLoRA), with peft's per-module patterns: regular expressions, the first wins.

    Args:
        rank: of the stored factors, which is what `rank_pattern` made of r.
    """
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

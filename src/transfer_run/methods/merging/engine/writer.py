"""Checkpoints written piece by piece: the header first, then every tensor's bytes at their place.

All shapes and types of a merged model are known before the first value is, so nothing is collected in memory and
pieces may arrive in any order, or twice.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from transfer_run.methods.merging.engine.checkpoint import DTYPES, Entry
from transfer_run.run_folder import DESCRIPTION, has_model

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".index.json", ".onnx")


class Sink(Protocol):
    """Where merged values go: a file, a dict of tensors, a live model."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Put flat `values` at element `start` of the tensor `name`."""


class Memory:
    """Merged tensors as a dict, for models that fit."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.tensors = {name: torch.empty(entry.shape, dtype=entry.dtype) for name, entry in entries.items()}

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.tensors[name].view(-1)[start : start + values.numel()] = values.to(self.tensors[name].dtype)


class Live:
    """Merged values go into tensors that are in use (a model's own, contiguous); names it lacks are passed over."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def write(self, name: str, start: int, values: Tensor) -> None:
        if name in self.tensors:
            self.tensors[name].view(-1)[start : start + values.numel()].copy_(values)


class CheckpointWriter:
    """A safetensors checkpoint in a folder, one file or shards with an index, as `save_pretrained` lays them out.

    Files get their final names when all is written; a folder never holds half a model. Use it as a context manager.

    Args:
        folder: made if missing; an earlier checkpoint of the same name in it is replaced.
        entries: all tensors to come.
        max_shard_bytes: a new file is begun where the next tensor would exceed it.
        stem: the files' name: `model` or `adapter_model`.
        metadata: text for the header beside `{"format": "pt"}`.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, Entry],
        *,
        max_shard_bytes: float = 5e9,
        stem: str = "model",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.stem, self.entries = folder, stem, dict(entries)
        folder.mkdir(parents=True, exist_ok=True)
        shards = _shards(self.entries, max_shard_bytes)
        self.files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        if len(shards) == 1:
            self.files = [f"{stem}.safetensors"]
        self._open: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self.weight_map: dict[str, str] = {}
        for file, names in zip(self.files, shards, strict=True):
            self._begin(file, names, dict(metadata or {}))

    def _begin(self, file: str, names: list[str], metadata: dict[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        offset, offsets = 0, {}
        for name in names:
            entry = self.entries[name]
            end = offset + entry.nbytes
            header[name] = {"dtype": _CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
            offsets[name], offset, self.weight_map[name] = offset, end, file
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
        handle = self._partial(file).open("wb", buffering=0)
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + offset)
        self._open.append(handle)
        self._places |= {name: (handle, 8 + len(text) + offset) for name, offset in offsets.items()}

    def _partial(self, file: str) -> Path:
        return self.folder / f".{file}.partial"

    def write(self, name: str, start: int, values: Tensor) -> None:
        dtype = self.entries[name].dtype
        handle, offset = self._places[name]
        handle.seek(offset + start * dtype.itemsize)
        view, done = values.to(dtype).contiguous().view(torch.uint8).numpy().data, 0
        while done < len(view):
            done += handle.write(view[done:])

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._open:
            handle.close()
        if kind is None:
            self._commit()
        else:
            for file in self.files:
                self._partial(file).unlink(missing_ok=True)

    def _commit(self) -> None:
        for old in (*self.folder.glob(f"{self.stem}-*-of-*.safetensors"), self.folder / f"{self.stem}.safetensors"):
            old.unlink(missing_ok=True)
        index = self.folder / f"{self.stem}.safetensors.index.json"
        index.unlink(missing_ok=True)
        for file in self.files:
            self._partial(file).replace(self.folder / file)
        if len(self.files) > 1:
            total = sum(entry.nbytes for entry in self.entries.values())
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self.weight_map.items()))}
            index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shards(entries: Mapping[str, Entry], limit: float) -> list[list[str]]:
    """Names per file, wide types first so that every tensor is aligned to its type."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name)):
        if shards[-1] and size + entries[name].nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entries[name].nbytes
    return shards


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy what a library's folder holds beside the weights (config.json, tokenizer, adapter_config.json).

    Returns:
        The names copied; none when `source` is a bare file or no library's folder.
    """
    if not any((source / name).is_file() for name in ("config.json", "adapter_config.json")):
        return []
    ours = {DESCRIPTION, "export.json", "README.md"} if has_model(source) else set()  # they describe what was merged
    found = [
        path
        for path in sorted(source.iterdir())
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_WEIGHTS)
        if path.name not in ours
    ]
    for path in found:
        shutil.copyfile(path, target / path.name)
    return [path.name for path in found]

"""Checkpoints on disk, read piece by piece: no tensor, let alone a model, is ever loaded whole.

A safetensors file is an 8-byte length, a JSON header (dtype, shape, byte range of every tensor) and the bytes. They
are read with plain reads into fresh memory: pages of a memory-mapped file would count as resident, and eight mapped
models make eight resident models.
"""

from __future__ import annotations

import json
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.weights.files import (
    ADAPTER,
    ADAPTER_SETTINGS,
    SAFE,
    refuse_codes,
    refuse_quantised,
    weight_files,
)
from transfer_run.errors import UserError
from transfer_run.run_folder import BODY_PREFIX, HEAD_PREFIX, WEIGHTS, has_model, model_folder, read_description

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INDEX = ".safetensors.index.json"
LARGEST_HEADER = 100_000_000  # bytes; what safetensors itself accepts


@dataclass(frozen=True)
class Entry:
    """A tensor's dtype and shape, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Checkpoint(ABC):
    """Named tensors that can be read in flat, row-major pieces.

    Attributes:
        where: folder or file, for messages.
        entries: every tensor's dtype and shape by name.
        changed: names that differ from the base this checkpoint stands on (adapters); None: any may.
        metadata: text from the files' headers.
    """

    where: str
    entries: dict[str, Entry]
    metadata: Mapping[str, str] = MappingProxyType({})
    changed: frozenset[str] | None = None

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of the flattened tensor, a copy that the caller may change."""

    def difference(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        """The same piece minus the base's values `base`, in the dtype of `base`."""
        return self.read(name, start, stop).to(base.dtype).sub_(base)


class StateDict(Checkpoint):
    """Tensors in memory, of a live model or a test."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str = "memory") -> None:
        self.where, self.tensors = where, {name: tensor.detach() for name, tensor in tensors.items()}
        self.entries = {name: Entry(t.dtype, tuple(t.shape)) for name, t in self.tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensors[name].reshape(-1)[start:stop].to("cpu", copy=True)


class Ones(Checkpoint):
    """The start of (IA)^3 vectors: every value is one."""

    def __init__(self, like: Checkpoint) -> None:
        self.where, self.entries = "ones", dict(like.entries)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return torch.ones(stop - start, dtype=self.entries[name].dtype)


@dataclass
class _Shard:
    path: Path
    offsets: dict[str, int] = field(default_factory=dict)  # byte position of each tensor in the file


class SafetensorsCheckpoint(Checkpoint):
    """One or several safetensors files.

    Args:
        files: the shards; every tensor name stands in one of them.
        prefix: taken off the names that have it.
        only: tensors without the prefix are left out.

    Raises:
        UserError: a file is missing, cut short or no safetensors file, or two shards hold one name.
    """

    def __init__(self, files: list[Path], prefix: str = "", where: str | None = None, only: bool = False) -> None:
        self.where, self.entries, self.metadata = where or str(files[0]), {}, {}
        self._shards: dict[str, tuple[_Shard, str]] = {}
        for path in files:
            shard, header = _Shard(path), self._header(path)
            refuse_codes((raw for raw, entry, _ in header if entry.dtype not in WIDE), str(path))
            for raw, entry, offset in header:
                if only and not raw.startswith(prefix):
                    continue
                name = raw.removeprefix(prefix)
                if name in self.entries:
                    raise UserError(f"The tensor {name!r} stands twice in {self.where}.", where=str(path))
                self.entries[name], self._shards[name], shard.offsets[raw] = entry, (shard, raw), offset

    def _header(self, path: Path) -> list[tuple[str, Entry, int]]:
        """Name, entry and byte offset of every tensor of one file."""
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > LARGEST_HEADER:
                    raise ValueError("its header is too long")
                header: dict[str, Any] = json.loads(file.read(length))
            self.metadata = {**self.metadata, **header.pop("__metadata__", {})}
            size, found = path.stat().st_size, []
            for name, about in header.items():
                begin, end = about["data_offsets"]
                entry = Entry(DTYPES[about["dtype"]], tuple(about["shape"]))
                if end - begin != entry.nbytes or 8 + length + end > size:
                    raise ValueError(f"the bytes of {name!r} are not all there")
                found.append((name, entry, 8 + length + begin))
            return found
        except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read as a safetensors file.",
                where=f"{type(error).__name__}: {error}",
                remedy="copy or download the file again",
            ) from error

    def read(self, name: str, start: int, stop: int) -> Tensor:
        shard, raw = self._shards[name]
        dtype = self.entries[name].dtype
        bytes_ = torch.empty((stop - start) * dtype.itemsize, dtype=torch.uint8)
        with shard.path.open("rb", buffering=0) as file:
            file.seek(shard.offsets[raw] + start * dtype.itemsize)
            view, done = bytes_.numpy().data, 0
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise UserError(f"{shard.path} ended while {raw!r} was read.", remedy="copy the file again")
                done += got
        return bytes_.view(dtype)


def open_checkpoint(folder_or_file: str | Path) -> SafetensorsCheckpoint:
    """The checkpoint in a safetensors file or in a folder, whoever wrote it.

    Understood: a file; a folder with `model.safetensors` or its index and shards, peft's `adapter_model.safetensors`,
    or one safetensors file of any name; what we have exported; a finished run's folder or its `checkpoints/model`,
    whose backbone is read under its own library's names and whose task head is left out.

    Raises:
        UserError: nothing to read is there, it is quantised, or it is a model that is more than its tensors.
    """
    path = Path(folder_or_file).expanduser()
    if path.is_file():
        return SafetensorsCheckpoint([path])
    path = model_folder(path)
    about = read_description(path) if has_model(path) else None
    if about is not None and not about.get("library"):
        return _own(path, about)
    refuse_quantised(path)
    stems = [stem for stem, _ in SAFE]
    stems = [ADAPTER, *stems] if (path / ADAPTER_SETTINGS).is_file() else [*stems, ADAPTER]
    stems += [index.name.removesuffix(INDEX) for index in sorted(path.glob(f"*{INDEX}"))]
    files, alone = weight_files(path, [(stem, ".safetensors") for stem in stems]), list(path.glob("*.safetensors"))
    files = files or (alone if len(alone) == 1 else [])  # of several without an index: which?
    if not files:
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        raise UserError(
            f"There is no safetensors checkpoint in {path}." if path.is_dir() else f"{path} does not exist.",
            where=f"found {', '.join(found[:8])}" if found else "",
            remedy="name a folder with model.safetensors (save_pretrained writes one), or the file itself",
        )
    return SafetensorsCheckpoint(files, where=str(path))


def _own(folder: Path, about: Mapping[str, Any]) -> SafetensorsCheckpoint:
    """The backbone of a model that we have saved: all of it, or nothing."""
    every = SafetensorsCheckpoint([folder / WEIGHTS], where=str(folder))
    strange = sorted(name for name in every.entries if not name.startswith((BODY_PREFIX, HEAD_PREFIX)))
    if strange or not about.get("complete", False):
        named = f": {', '.join(strange[:4])}" if strange else ""
        method = (about.get("method") or {}).get("name")
        raise UserError(
            f"That model (method={method}) is more than a backbone's own weights: its tensors alone are no checkpoint.",
            where=f"{folder}{named}",
            remedy="name the run as a source, sources.NAME=FOLDER: what changes the backbone's weights (lora, bitfit, "
            "partial) is folded into them; prompts, adapters and side networks cannot be merged",
        )
    return SafetensorsCheckpoint([folder / WEIGHTS], BODY_PREFIX, str(folder), only=True)

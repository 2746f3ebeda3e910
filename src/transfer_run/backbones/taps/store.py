"""Taps on disk or in memory: what a frozen backbone makes of every row, computed once.

    folder/<key>/about.json            what the taps are of
                 encoder.3.taps        (N, T, D) memory-mapped: the output of block 3 for every row
                 encoder.filled        (N,) bytes: 1 where all taps of the row are there
                 encoder.sums          (N,) CRC-32 of all taps of the row, looked at once a process

Rows are written the first time they are seen and read ever after; other runs, seeds and ranks of the same machine
read the same files. Their room on the disk is taken when they are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.errors import UserError

Medium = Literal["disk", "ram"]
Tap = tuple[str, int]
"""(stack, block) whose output is kept."""
Taps = Mapping[Tap, tuple[tuple[int, ...], torch.dtype]]


class TapStore:
    """Taps of `rows` rows.

    Args:
        rows: rows of all splits together.
        taps: (stack, block) -> shape of one row's tap, and its type; texts: (T, D) with T the longest there can be.
        dtype: a narrower type to keep them in; None: their own.
        folder: where the files lie; None keeps them in memory.
    """

    def __init__(self, rows: int, taps: Taps, dtype: torch.dtype | None, folder: Path | None) -> None:
        self.taps = dict(taps)
        stacks = {stack for stack, _ in taps}

        def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            if folder is None:
                return torch.zeros(rows, *shape, dtype=dtype)
            size = rows * math.prod(shape)
            return torch.from_file(str(folder / name), shared=True, size=size, dtype=dtype).view(rows, *shape)

        self._taps = {tap: tensor(_name(tap), shape, dtype or own) for tap, (shape, own) in taps.items()}
        self._filled = {stack: tensor(f"{stack}.filled", (), torch.uint8) for stack in stacks}
        self._sums = {stack: tensor(f"{stack}.sums", (), torch.int64) for stack in stacks} if folder else {}
        self._known = {stack: torch.zeros(rows, dtype=torch.bool) for stack in self._sums}
        self.folder = folder

    def tensors(self) -> list[Tensor]:
        """All that is kept, taps, marks and sums."""
        return [*self._taps.values(), *self._filled.values(), *self._sums.values()]

    def depth(self, stack: str) -> int:
        """Blocks of `stack` whose output is kept: the first ones."""
        return sum(one == stack for one, _ in self.taps)

    def has(self, stack: str, rows: Tensor) -> bool:
        """Are all taps of these rows there?

        Raises:
            UserError: they are, and are not what was written.
        """
        if stack not in self._filled or not self._filled[stack][rows].all():
            return False
        for row in rows[~self._known[stack][rows]].tolist() if self._sums else ():
            if self._sum(stack, row) != int(self._sums[stack][row]):
                raise damaged(self.folder, f"{self.folder}: row {row} of {stack}")
            self._known[stack][row] = True
        return True

    def _sum(self, stack: str, row: int) -> int:
        """CRC-32 of all taps of a row."""
        found = 0
        for tap in self._taps:
            if tap[0] == stack:
                found = zlib.crc32(self._taps[tap][row].contiguous().view(torch.uint8).numpy().data, found)
        return found

    def read(self, tap: Tap, rows: Tensor, like: Tensor) -> Tensor:
        """The taps of `rows` (B,), on the device of `like` (B, T, ...), whose T is that of the batch."""
        kept = self._taps[tap]
        found = kept[rows] if kept.shape[1:] == like.shape[1:] or like.ndim != 3 else kept[rows, : like.shape[1]]
        return found.to(like.device, self.taps[tap][1], non_blocking=True)

    def write(self, tap: Tap, rows: Tensor, value: Tensor) -> None:
        """Keep `value` (B, T, ...) of `rows` (B,)."""
        kept = self._taps[tap]
        value = value.detach().to("cpu", kept.dtype)
        if kept.shape[1:] == value.shape[1:]:
            kept[rows] = value
        else:
            kept[rows, : value.shape[1]] = value

    def mark(self, stack: str, rows: Tensor) -> None:
        """All taps of these rows are written."""
        for row in rows.tolist() if self._sums else ():
            self._sums[stack][row] = self._sum(stack, row)
            self._known[stack][row] = True
        self._filled[stack][rows] = 1


def damaged(folder: Path | None, where: str) -> UserError:
    return UserError("The stored taps are damaged.", where=where, remedy=f"delete {folder}; it is made again")


def _name(tap: Tap) -> str:
    return f"{tap[0]}.{tap[1]}.taps"


def sizes(rows: int, taps: Taps, dtype: torch.dtype | None = None) -> dict[Tap, int]:
    """Bytes of each tap of all rows."""
    return {tap: rows * math.prod(shape) * (dtype or own).itemsize for tap, (shape, own) in taps.items()}


def open_store(
    medium: Medium, folder: Path, about: Mapping[str, Any], rows: int, taps: Taps, dtype: torch.dtype | None = None
) -> TapStore:
    """The store of the taps that `about` describes; made if it is not there, atomically.

    Raises:
        UserError: there is no room for a full one, or the files that are there are damaged.
    """
    needed = sizes(rows, taps, dtype)
    size = sum(needed.values())
    if medium == "ram":
        _refuse_large(size, _free_memory(), "ram", "the memory that is free")
        return TapStore(rows, taps, dtype, None)
    key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    final = folder / key
    if not final.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_large(size, shutil.disk_usage(folder).free, "disk", f"the free room in {folder}")
        _make(final, about, rows, needed)
    for tap, wanted in needed.items():
        path = final / _name(tap)
        if not path.is_file() or path.stat().st_size != wanted:
            raise damaged(final, str(path))
    return TapStore(rows, taps, dtype, final)


def _make(final: Path, about: Mapping[str, Any], rows: int, needed: Mapping[Tap, int]) -> None:
    """Empty files under a passing name, then the name: whoever comes second uses what the first has made."""
    building = Path(tempfile.mkdtemp(prefix=".taps-", dir=final.parent))
    try:
        for tap, size in needed.items():
            _reserved(building / _name(tap), size)
        for stack in {stack for stack, _ in needed}:
            _reserved(building / f"{stack}.filled", rows)
            _reserved(building / f"{stack}.sums", 8 * rows)
        (building / "about.json").write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first
            os.rename(building, final)
    except OSError as error:
        raise UserError(
            f"The taps cannot be kept: {os.strerror(error.errno or 0).lower()}.",
            where=str(final.parent),
            remedy="make room, name another cache.folder, or set cache.taps=none",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _reserved(path: Path, size: int) -> None:
    """A file of zeros whose room on the disk is taken: writing to mapped memory cannot run out of it."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
        file.truncate(size)


def _free_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _refuse_large(size: int, free: int, medium: Medium, what: str) -> None:
    if size > 0.9 * free:
        other = "cache.taps=disk" if medium == "ram" else "another cache.folder"
        raise UserError(
            f"All taps take {size / 2**30:.2f} GiB, more than {what} holds ({free / 2**30:.2f} GiB).",
            where=f"cache.taps={medium}",
            remedy=f"cache.dtype=bfloat16 halves them; {other}, or cache.taps=none",
        )

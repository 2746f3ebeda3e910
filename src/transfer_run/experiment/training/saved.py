"""Checkpoints read back: whole, or named as damaged.

They are torch's own files, zip archives that carry a checksum of every part; torch itself does not look at them.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from transfer_run.errors import UserError


def check_saved(path: Path, what: str, remedy: str) -> None:
    """Is every byte of a checkpoint as it was written?

    Args:
        what: the subject of the message.

    Raises:
        UserError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error):
        broken = path.name
    if broken is not None:
        raise UserError(f"{what} is damaged.", where=str(path), remedy=remedy)


def read_saved(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU.

    Raises:
        UserError: it is damaged.
    """
    check_saved(path, what, remedy)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{what} is damaged.", where=str(path), remedy=remedy) from error

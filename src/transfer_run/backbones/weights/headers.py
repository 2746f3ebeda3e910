"""What a file of weights holds: names and types of its tensors, without their values where the format lets us."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from transfer_run.backbones.weights.files import weight_files
from transfer_run.errors import UserError

WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of weights that are what they say."""


def narrow(file: Path) -> list[str]:
    """The tensors of a weights file that are of other types; none of their values is read from safetensors."""
    from safetensors import safe_open

    with readable(file):
        if file.suffix != ".safetensors":
            read = torch.load(file, map_location="meta", weights_only=True, mmap=False)
            return [name for name, each in read.items() if isinstance(each, Tensor) and each.dtype not in WIDE]
        with safe_open(file, framework="pt") as opened:
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return [name for name, kind in types.items() if kind not in ("F64", "F32", "F16", "BF16")]


def has_tensor(folder: Path, name: str) -> bool:
    """Does the folder hold a tensor of this name, or of one that a wrapper has put more before?"""
    from safetensors import safe_open

    for file in weight_files(folder):
        with readable(file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    names = set(opened.keys())
            else:
                names = set(torch.load(file, map_location="meta", weights_only=True, mmap=False))
        if any(each.endswith(name) for each in names):
            return True
    return False


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """One clear error for files that are damaged or hold more than tensors."""
    from safetensors import SafetensorError

    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            "The weights are a pickle that holds more than tensors: it could run code and is not loaded.",
            where=str(path),
            remedy="convert it to safetensors where you trust it, or choose other weights",
        ) from error
    except KeyError as error:  # transformers' own, of an index
        raise UserError(
            f"The index of the weights lacks {error}.",
            where=str(path),
            remedy='write it as save_pretrained does: {"metadata": {}, "weight_map": {TENSOR: FILE}}',
        ) from error
    except (SafetensorError, EOFError, RuntimeError, OSError) as error:
        raise UserError(
            f"The weights cannot be read: {error or 'the file is empty'}",
            where=str(path),
            remedy="the file is damaged or incomplete: fetch or copy it again",
        ) from error

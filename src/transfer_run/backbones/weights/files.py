"""What lies in a folder of weights, whoever reads it: weight files, settings, a tokenizer. Imports nothing heavy.

model.safetensors            before   model.safetensors.index.json and its shards, as transformers prefers them
pytorch_model.bin            the same, where there are no safetensors
adapter_model.safetensors    of an adapter (adapter_config.json)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.files import read_json

ADAPTER_SETTINGS, ADAPTER = "adapter_config.json", "adapter_model"
SAFE = (("model", ".safetensors"),)
PICKLED = (("pytorch_model", ".bin"),)
CODES = re.compile(r"(^|\.)q?weight$")
"""What holds the codes of a quantised layer, beside their scales; a model's counters and masks have other names."""
WRAPPERS = ("module.", "_orig_mod.")
"""What torch's wrappers (DataParallel, compile) put before the names of the tensors that they hold."""
AGAIN = "the file is damaged: copy or download it again"


def weight_files(folder: Path, kinds: Sequence[tuple[str, str]] = (*SAFE, *PICKLED)) -> list[Path]:
    """The weight files of a model folder; none where there are none of these kinds (stem and ending).

    Raises:
        UserError: an index is damaged, or names files that are not there.
    """
    for stem, ending in kinds:
        single, index = folder / f"{stem}{ending}", folder / f"{stem}{ending}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    names = read_json(index, AGAIN).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError("The index names no weight files (weight_map).", where=str(index), remedy=AGAIN)
    shards = sorted({index.parent / name for name in names.values()})
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"There are no complete weights: {', '.join(missing[:3])}{more} of the index are missing.",
            where=str(index),
            remedy="copy or download the missing files",
        )
    return shards


def stored_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            "The folder holds no model: config.json is missing.",
            where=str(folder),
            remedy="name a folder written by save_pretrained or by `hf download`",
        )
    return read_json(path, AGAIN)


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """peft's settings of an adapter folder; None when it is none.

    Raises:
        UserError: they are damaged.
    """
    path = folder / ADAPTER_SETTINGS
    return read_json(path, AGAIN) if path.is_file() else None


def refuse_quantised(folder: Path) -> None:
    """Codes and scales of fewer bits are no weights to load, train or average.

    Raises:
        UserError: naming how they were quantised.
    """
    path = folder / "config.json"
    settings = read_json(path, AGAIN).get("quantization_config") if path.is_file() else None
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        bits = [key for key in ("load_in_4bit", "load_in_8bit") if isinstance(settings, dict) and settings.get(key)]
        raise _quantised(" ".join(map(str, [method or "quantization_config", *bits])), str(path))


def refuse_codes(names: Iterable[str], where: str) -> None:
    """The same of a file whose settings are not beside it, or say nothing.

    Args:
        names: of its tensors that are whole numbers, or floats of 8 bits: weights among them are codes.

    Raises:
        UserError: naming the weights.
    """
    codes = sorted(name for name in names if CODES.search(name))
    if codes:
        more = f" and {len(codes) - 1} more" if len(codes) > 1 else ""
        raise _quantised(f"{codes[0]}{more} are codes of few bits", where)


def _quantised(how: str, where: str) -> UserError:
    return UserError(
        f"The weights are quantised ({how}).",
        where=where,
        remedy="name the model in full precision (backbone.load=nf4 packs it as it is loaded), or save it so: "
        "from_pretrained(FOLDER).dequantize().save_pretrained(NEW) of transformers",
    )


def without_wrapper(name: str) -> str:
    """A tensor's name without what torch's wrappers put before it."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def tokenizer_files(folder: Path) -> bool:
    """Does the folder hold a tokenizer (rather than only the model's config)?"""
    names = ("tokenizer.json", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "vocab.txt",
             "vocab.json")  # fmt: skip
    return any((folder / name).is_file() for name in names)

"""Pictures in files: which of a folder are read, whether they are whole, their pixels in 8 bits the right way up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from transfer_run.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
"""What the folder of a split is called."""
LEFTOVERS = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information")
"""Folders that archives and systems leave behind; names that begin with a dot are such, too."""
ENDS = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}
"""What a whole file of a kind ends with, by what it begins with."""
CHECKED = 50_000
"""Files of an evaluation split that are looked at before training; more would take minutes on a network's disk."""

LOOKED = 2_000
"""Pictures of a split whose headers are looked at for what is not read of them."""


def is_leftover(name: str) -> bool:
    """Is this file or folder no part of the data: hidden, macOS's `._x.png`, an archive's leftover?"""
    return name.startswith(".") or name in LEFTOVERS


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without leftovers."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_leftover(path.name))


def pictures_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All pictures below a folder by path, through links too, and what was left out: `hidden`, or other files' endings.

    Raises:
        UserError: links that lead in a circle.
    """
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in _walk(folder, ()):
        suffix = path.suffix.lower()
        if any(is_leftover(part) for part in path.relative_to(folder).parts):
            left_out["hidden"] += suffix in SUFFIXES
        elif suffix in SUFFIXES:
            found.append(path)
        else:
            left_out[suffix or path.name] += 1
    return sorted(found), +left_out


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        raise UserError("Links between folders lead in a circle.", where=str(folder), remedy="take the link out")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), (*above, real))
            else:
                yield Path(entry.path)


def split_of(folder: str) -> str:
    """The split that a folder's name stands for, in any case; "": none."""
    return next((split for split, names in FOLDERS.items() if folder.lower() in names), "")


def sorted_out(pictures: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Pictures of a pattern by split and class: the class is the folder that one stands in, the split the folder above
    where that is named after one. All of them are train where none is.

    Raises:
        UserError: some folders above are splits, and others are not.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for picture in pictures:
        found.setdefault(split_of(picture.parent.parent.name), {}).setdefault(picture.parent.name, []).append(picture)
    if "" in found and len(found) > 1:
        one, other = (next(iter(next(iter(found[split].values())))) for split in ("", max(found)))
        raise UserError(
            f"Some of the pattern's pictures stand in folders of splits ({other.parent}), others do not.",
            where=str(one.parent),
            remedy="let the pattern fit SPLIT/CLASS/PICTURE alone, or CLASS/PICTURE alone",
        )
    return {"train": found[""]} if "" in found else found


def said_of(left_out: Mapping[str, int]) -> str:
    """`3 hidden pictures and 2 other files (.txt, .xml)`; empty where nothing was left out."""
    hidden, others = left_out.get("hidden", 0), {key: n for key, n in left_out.items() if key != "hidden"}
    parts = [f"{hidden} hidden picture{'s' * (hidden > 1)}"] if hidden else []
    if others:
        count = sum(others.values())
        shown = ", ".join(sorted(others)[:4]) + (", ..." if len(others) > 4 else "")
        parts.append(f"{count} file{'s' * (count > 1)} that {'are' if count > 1 else 'is'} no picture ({shown})")
    return " and ".join(parts)


def check_whole(files: Sequence[Path]) -> None:
    """Refuse a file that is cut off or no picture, before any training: its beginning and its end are looked at, and it
    is decoded only where they are strange.

    Raises:
        UserError: the first such file.
    """
    for file in files[:CHECKED]:
        with file.open("rb") as stream:
            begin = stream.read(4)
            stream.seek(max(0, file.stat().st_size - 64))
            end = stream.read()
        expected = next((mark for start, mark in ENDS.items() if begin.startswith(start)), None)
        if expected is not None and expected in end:
            continue
        try:
            with Image.open(file) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"An image cannot be decoded: {error}",
                where=str(file),
                remedy="repair the file, or take it out of the data",
            ) from error


def said_of_contents(split: str, open_image: Callable[[int], Image.Image], count: int) -> list[str]:
    """What of the pictures of a split is not read, as notes: transparency, and all frames of a film but the first.
    Headers alone are looked at, of the first `LOOKED` pictures."""
    looked, clear, films = min(count, LOOKED), 0, 0
    for row in range(looked):
        try:
            with open_image(row) as image:
                clear += image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
                films += getattr(image, "n_frames", 1) > 1
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # what cannot be read is refused, and named, where it is decoded
    of = f"{looked} pictures" if looked == count else f"the first {looked} pictures"
    notes = []
    if clear:
        notes.append(f"{split}: {clear} of {of} have transparent places, which are read as the colours beneath")
    if films:
        notes.append(f"{split}: of {films} of {of} the first frame is read, and no other")
    return notes


def in_8_bits(image: Image.Image) -> Image.Image:
    """The picture the right way up (phones store how they were held), its values in 0..255.

    16 bits are scaled, not clipped; numbers with a fraction are read as 0..1.

    Raises:
        ValueError: values that no mode of pictures has.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image, dtype=np.float64), 65535, "16 bits (0 to 65535)"))
    if image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image, dtype=np.float64), 1.0, "0 to 1, as fractions are read"))
    return image


def _scaled(values: np.ndarray, top: float, says: str) -> np.ndarray:
    if not bool(np.isfinite(values).all()) or values.min() < 0 or values.max() > top:
        raise ValueError(f"its values, {values.min():g} to {values.max():g}, are outside {says}")
    return np.rint(values * (255 / top)).astype(np.uint8)

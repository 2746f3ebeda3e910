"""Folders in a .zip: unpacked once beside the user's other caches, and read there as any folder is.

    photos.zip                       ~/.cache/transfer-run/unpacked/photos-1f3a.../
      photos/cat/1.png      ──▶        photos/cat/1.png
      __MACOSX/...                     (leftovers of the archiver are left out)

The archive's bytes are part of a run's identity. The folder is found by the archive's path, size and times, so that one
that was written anew is unpacked anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from transfer_run.data.reading.pictures import folders_in, is_leftover
from transfer_run.data.reading.table import is_table
from transfer_run.data.reading.text_tables import kind_of
from transfer_run.errors import UserError
from transfer_run.files import cache_folder

ENDING = ".zip"


def is_archive(path: Path) -> bool:
    """Is this a .zip of a folder? `rows.csv.zip` is a table."""
    return path.suffix.lower() == ENDING and kind_of(path) == "" and path.is_file()


def place_of(path: str, notes: list[str]) -> str:
    """What `dataset.path` names, of an archive its folder: which that is, is added to `notes`.

    Raises:
        UserError: see `unpacked`.
    """
    named = Path(path).expanduser()
    if not is_archive(named):
        return path
    folder = unpacked(named)
    notes.append(f"{named.name}: unpacked, and read in {folder}")
    return str(folder)


def unpacked(archive: Path) -> Path:
    """The folder that a .zip holds; where everything in it stands in one folder, that one.

    Raises:
        UserError: it is damaged, locked, holds nothing, holds a name twice, or the disk has no room for it.
    """
    about = archive.stat()
    stamp = f"{archive.resolve()} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"
    place = cache_folder() / "unpacked" / f"{archive.stem[:60]}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    if not place.is_dir():
        try:
            _unpack(archive, place)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"The archive cannot be unpacked: {error}.",
                where=str(archive),
                remedy="compress it again without a password, or unpack it and name the folder",
            ) from error
    return _within(place)


def _unpack(archive: Path, place: Path) -> None:
    """Into a folder of its own, which then takes its name: nobody sees a part of it."""
    with zipfile.ZipFile(archive) as opened:
        held = [info for info in opened.infolist() if not info.is_dir() and not _left_out(info.filename)]
        _check(archive, [info.filename for info in held])
        place.parent.mkdir(parents=True, exist_ok=True)
        size, free = sum(info.file_size for info in held), shutil.disk_usage(place.parent).free
        if size > free:
            raise UserError(
                f"The archive holds {size / 1e9:.1f} GB, and {place.parent} has room for {free / 1e9:.1f}.",
                where=str(archive),
                remedy="make room, set XDG_CACHE_HOME to another disk, or unpack it yourself and name the folder",
            )
        with tempfile.TemporaryDirectory(dir=place.parent) as own:
            for info in held:
                opened.extract(info, own)  # leaves out `..` and the beginning of absolute names
            try:
                os.rename(own, place)
            except OSError:  # another process was faster
                if not place.is_dir():
                    raise
            else:
                Path(own).mkdir()  # for TemporaryDirectory to take away


def _check(archive: Path, names: list[str]) -> None:
    if not names:
        raise UserError("The archive holds no files.", where=str(archive), remedy="name another one")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    outside = next((name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts), None)
    if twice or outside:
        raise UserError(
            f"The archive holds {twice} twice." if twice else f"{outside} would lie outside of the archive's folder.",
            where=str(archive),
            remedy="compress the folder again",
        )


def _left_out(name: str) -> bool:
    return any(is_leftover(part) for part in PurePosixPath(name).parts if part != "..")


def _within(folder: Path) -> Path:
    """The folder that people compressed: archivers write it as the only thing at the top.

    One class folder alone stays what it is: what it holds are pictures, no folders or tables.
    """
    inside = list(folder.iterdir())
    if len(inside) != 1 or not inside[0].is_dir():
        return folder
    below = inside[0]
    tables = any(is_table(file) and kind_of(file) != ".txt" for file in below.iterdir())
    return _within(below) if tables or folders_in(below) else folder

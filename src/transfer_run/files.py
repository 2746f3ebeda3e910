"""Files written whole or not at all, and read with a message instead of a traceback."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from transfer_run.errors import UserError


def fixed_part(pattern: str) -> Path:
    """The folder before the first wildcard of a pattern: where relative names in its tables start."""
    path = Path(pattern).expanduser()
    return next(parent for parent in path.parents if not glob.has_magic(str(parent)))


def cache_folder() -> Path:
    """Where this user's machine keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transfer-run"


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FULL = (
    "No space left on device",
    "PytorchStreamWriter failed writing file",
    "file write failed",
    "database or disk is full",
)
"""What libraries say of a full disk that raise errors of their own."""


def no_room(error: BaseException | None) -> str:
    """What the system calls it where a full disk, or one that may not be written to, is behind an error; else empty."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return os.strerror(error.errno)
        if any(words in str(error) for words in FULL):
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A neighbour of `path` to write to, which takes its place when the block ends: a reader sees the old file or the
    whole new one, never a part; what breaks off leaves the old one. Two processes may write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text`, whole or not at all, and onto the disk."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def user_path(named: str, where: str) -> Path:
    """The path that a user's word names, `~` expanded; whether anything is there is another question.

    Args:
        where: the key, for the message.

    Raises:
        UserError: no file can be called so, or it may not be looked at.
    """
    try:
        path = Path(named).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError as error:  # pathlib's word for ~NAME
        raise UserError(
            f"Nobody on this machine has the home {named.partition('/')[0]}.",
            where=where,
            remedy="write the folder in full, or ./~NAME for a name that begins so",
        ) from error
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        shown = named if len(named) <= 80 else f"{named[:60]}... ({len(named)} characters)"
        raise UserError(f"{shown!r} is no path: {reason}.", where=where, remedy="name a file or folder") from error
    return path


def make_folder(folder: Path, where: str) -> None:
    """Make a folder that the user's words name.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".transfer-run.{os.getpid()}"
        probe.mkdir()  # what may be written to says so only when it is: /proc does not
        probe.rmdir()
        reason = ""
    except OSError as error:
        reason = str(error.strerror or error).lower()
    if reason:
        raise UserError(
            f"The folder {folder} cannot be used: {reason}.", where=where, remedy="name one that can be written to"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON, which has no word for what is no finite number: null stands there."""
    write_atomically(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file that we wrote.

    Raises:
        UserError: the file is damaged; with `remedy`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise UserError(f"The file is damaged: {error}.", where=str(path), remedy=remedy) from error
    return content


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The fast loader, reading 1e-3 as the number that OmegaConf reads (YAML 1.1 would want 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file of keys.

    Raises:
        UserError: it is no YAML mapping.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is no text: {error.reason}.", where=str(file), remedy="mend the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(
            f"{file.name} is not valid YAML: {problem}.", where=f"{file}{line}", remedy="mend the file"
        ) from error
    if not isinstance(content or {}, dict):
        raise UserError(f"{file.name} holds no keys.", where=str(file), remedy="write KEY: VALUE lines")
    return content or {}

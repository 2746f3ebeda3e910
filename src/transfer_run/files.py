"""Files written whole or not at all, and read with a message instead of a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def make_folder(folder: Path, where: str) -> None:
    """Make a folder that the user's words name.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "it may not be written to"
    except OSError as error:
        reason = str(error.strerror or error).lower()
    if reason:
        raise UserError(
            f"The folder {folder} cannot be used: {reason}.", where=where, remedy="name one that can be written to"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


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

"""What a run leaves behind: files written atomically, the environment it ran in, its log."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError

LOG = logging.getLogger("transfer_run")


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


def read_result(folder: Path) -> dict[str, Any] | None:
    """`result.json` of a run folder; None when the run has not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    content = read_json(path, "delete it: the same command then makes it again, from the run's last checkpoint")
    return content if content.get("status") == "finished" else None


@cache
def environment() -> dict[str, str]:
    """Versions, device and git revision, for `result.json`."""
    import torch

    packages = ("torch", "lightning", "transformers", "timm", "peft", "datasets", "hydra-core", "transfer-run")
    found = {name: importlib.metadata.version(name) for name in packages}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **found,
        "platform": platform.platform(),
        "device": device,
        "cores": str(os.cpu_count()),
        "git": _git_revision(),
    }


def _git_revision() -> str:
    """Revision of the checkout that runs, with a mark for local changes; empty outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        revision = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+changes" if changed else "")


LIBRARIES = ("lightning.pytorch", "lightning.fabric", "py.warnings")


@contextmanager
def run_log(folder: Path, *, console: bool = True) -> Iterator[None]:
    """Send the log to `run.log` (appended on resume); our own lines also to stderr, the libraries' only to the file."""
    folder.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(folder / "run.log", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_console = logging.StreamHandler(sys.stderr)
    to_console.setFormatter(logging.Formatter("%(message)s"))
    logging.captureWarnings(True)
    before = {}
    for name in (LOG.name, *LIBRARIES):
        logger = logging.getLogger(name)
        before[name] = (logger.level, logger.propagate, list(logger.handlers))
        logger.handlers = [to_file, to_console] if console and name == LOG.name else [to_file]
        logger.propagate = False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for name, (level, propagate, handlers) in before.items():
            logger = logging.getLogger(name)
            logger.level, logger.propagate, logger.handlers = level, propagate, handlers
        logging.captureWarnings(False)
        to_file.close()

"""What a run leaves behind: files written atomically, the environment it ran in, its log."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from transfer_run.run_folder import LOG_FILE

LOG = logging.getLogger("transfer_run")


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
    root = Path(__file__).resolve().parents[4]
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


class _File(logging.FileHandler):
    """A log that a full disk cannot end a run by: what it could not write is on the console alone."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


LIBRARIES = ("lightning.pytorch", "lightning.fabric", "py.warnings")


@contextmanager
def run_log(folder: Path, *, console: bool = True, file: Path | None = None) -> Iterator[None]:
    """Send the log to `run.log` (appended on resume); our own lines also to stderr, the libraries' only to the file.

    Args:
        file: another log, of a process beside the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_file = _File(file or folder / LOG_FILE, encoding="utf-8")
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

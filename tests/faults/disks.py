"""Small and read-only disks to fill and to fail on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(disk: Path, options: str) -> Iterator[Path]:
    """A disk in memory, `size=12k` or `ro`, while the context lasts; only root can mount one."""
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a disk can be mounted only by root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)

"""Plans that tables ask for: several at once in processes of their own, and kept on disk for the next time.

A plan is found again under the hash of its whole config, of this package's source and of its libraries' versions;
`make clean`, or deleting the folder, forgets them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.identity import canonical
from transfer_run.files import read_json, write_json

FOLDER = Path("outputs") / "plans"
WORKERS = 2
POOL_FROM = 8
"""Plans from which on processes are worth their start."""

Job = tuple[str, Run]
"""What is made (`memory`, `inference`, `parameters`) and of which config."""
Maker = Callable[[str, Run], Mapping[str, Any]]


def recall(job: Job) -> Mapping[str, Any] | None:
    """What an earlier process made of this job; None if none did."""
    path = _path(job)
    if path is None or not path.is_file():
        return None
    try:
        return read_json(path, "delete it")
    except UserError:  # made again
        return None


def remember(job: Job, content: Mapping[str, Any]) -> None:
    """Keep it for the next process."""
    path = _path(job)
    if path is not None:
        write_json(path, dict(content))


def made_at_once(jobs: Mapping[str, Job], make: Maker) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Each job's key with what was made of it, as they get done; None for those that failed.

    Args:
        make: a function of a module, which another process can import.
    """
    try:
        futures = {_pool().submit(_worked, make, *job): key for key, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:  # a process was ended from outside, for its memory most likely: go on without
        return


@cache
def _pool() -> ProcessPoolExecutor:
    """One for all tables: it takes a while until a process has imported what plans need."""
    return ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"), _one_thread)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _worked(make: Maker, kind: str, run: Run) -> Mapping[str, Any] | None:
    try:
        return make(kind, run)
    except Exception:  # the table asks again in its own process, which tells the reason in the cell
        return None


def _path(job: Job) -> Path | None:
    """None where modules of the user's own may take part."""
    kind, run = job
    if run.config["search_path"]:
        return None
    text = "\n".join((kind, text_of(run), _made_of()))
    return FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def text_of(run: Run) -> str:
    """The whole config as text, for two runs that differ in anything."""
    return canonical(run.config)


@cache
def _made_of() -> str:
    """Hash of what makes plans: the package's source, its configs (sources are named by words), its libraries."""
    folders = (Path(__file__).parents[1], registry.config_root())
    files = [path for folder in folders for kind in ("*.py", "*.yaml") for path in folder.rglob(kind)
             if path.relative_to(folder).parts[0] not in ("cli", "table")]  # fmt: skip
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    for name in ("torch", "transformers", "timm", "peft"):
        digest.update(importlib.metadata.version(name).encode())
    return digest.hexdigest()

"""The story of one run: is it done? is somebody at it? what does it need first? carry it out, record it.

Nothing here imports torch: a finished run answers at once.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.config.identity import identity, run_folder
from transfer_run.experiment.models.export_folder import check_place
from transfer_run.experiment.planning.preflight import check_before
from transfer_run.experiment.record.log import LOG, run_log
from transfer_run.experiment.record.summary import show_result
from transfer_run.experiment.sources.resolve import _refuse_cycle, fetched, source_tree, sources_of
from transfer_run.experiment.sources.source import Source, Tree, _naming
from transfer_run.files import make_folder, write_atomically
from transfer_run.run_folder import CHECKPOINTS, CONFIG, LOG_FILE, METRICS, RESULT, read_result


def carry_out(cfg: DictConfig, *, chain: tuple[str, ...] = ()) -> Path:
    """Carry out the run that `cfg` describes, once; returns its folder.

    A finished run is shown, not repeated (unless `force`); an unfinished one goes on from its last checkpoint; a run
    that another process is at is waited for.

    Args:
        chain: identities of the runs that wait for this one as a source.

    Raises:
        UserError, Preempted, KeyboardInterrupt, RunFailed.
    """
    if cfg.dry_run:
        from transfer_run.experiment.planning.dry_run import show_dry_run

        show_dry_run(cfg)
        return run_folder(cfg)
    folder = run_folder(cfg)
    if cfg.export:
        make_folder(check_place(folder, Path(cfg.export)).parent, f"export={cfg.export}")
    if read_result(folder) is None or cfg.force:
        with _held(folder):
            if read_result(folder) is None or cfg.force:
                _carry_out(cfg, folder, chain)
    else:
        print(f"finished already: {folder} (force=true repeats it)")
    if not chain:
        show_result(folder)
    if cfg.export:
        from transfer_run.experiment.models.export import export_run

        print(f"exported to {export_run(folder, Path(cfg.export))}")
    return folder


def _carry_out(cfg: DictConfig, folder: Path, chain: tuple[str, ...]) -> None:
    sources = ensure_sources(cfg, (*chain, identity(cfg)))
    if cfg.force:
        _clear(folder)
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    from transfer_run.experiment.training.train import (
        train,  # before the log is redirected: libraries set up theirs on import
    )
    from transfer_run.experiment.training.workers import launch, wanted_processes

    with run_log(folder), _preemptible():
        LOG.info("run %s", folder)
        try:
            if wanted_processes(cfg) > 1:
                launch(cfg, folder, sources)
            else:
                train(cfg, folder, sources)
        except (UserError, Preempted, RunFailed):
            raise
        except SystemExit as error:  # Lightning's answers to signals that come outside of training steps
            if error.code:
                raise KeyboardInterrupt from error
            raise Preempted("stopped by SIGTERM") from error
        except Exception as error:
            with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            raise RunFailed(folder / LOG_FILE, f"{type(error).__name__}: {error}") from error


@contextmanager
def _preemptible() -> Iterator[None]:
    """SIGTERM while a run is built or recorded: nothing to save yet, but the same answer as in training."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by SIGTERM before the next checkpoint")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, the result first, so that nothing looks finished meanwhile."""
    (folder / RESULT).unlink(missing_ok=True)
    for path in (folder / METRICS, *(folder / CHECKPOINTS).rglob("*")):
        if path.is_file():
            path.unlink()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the run against other processes; wait, and say so, while another one is at it."""
    make_folder(folder, f"output_dir: {folder}")
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        print(f"{folder} is being carried out by {who}; waiting for it", flush=True)
        lock.acquire()
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def ensure_sources(cfg: DictConfig, chain: tuple[str, ...]) -> dict[str, Path]:
    """Folders of all sources by name, each carried out first when it is missing.

    Args:
        chain: identities of the runs that wait, this one last.

    Raises:
        UserError: a circle, words that name nothing, a source that the method does not read, misses or cannot use;
            before the first source is carried out, where it can be known.
        RunFailed: a source broke; its log is named.
    """

    if len(chain) == 1:  # the run that was asked for: what can be known of all below it is known before the first
        tree = source_tree(cfg)
        missing = any(not below.finished for source in tree.sources for _, below in source.walk())
        for _, run in tree.walk():
            if run.cfg is not None and not run.finished:
                with _naming(Source(run.name, "")) if run.name else nullcontext():
                    check_before(run.cfg, sources_missing=missing)
        if missing:
            rehearse_sources(tree)
    folders = {}
    for source in sources_of(cfg):
        _refuse_cycle(source, chain)
        with _naming(source):
            if source.cfg is not None:
                folders[source.name] = carry_out(source.cfg, chain=chain)
            else:
                folders[source.name] = source.folder or fetched(source)
    return folders


def rehearse_sources(tree: Tree) -> None:
    """Do the models of sources fit the methods that will read them? Asked of shapes alone, where a run has sources.

    Raises:
        UserError: as the method itself would refuse them.
    """
    from transfer_run.experiment.sources.models import check_on_meta

    for below in tree.sources:
        if below.cfg is not None and not below.finished:
            rehearse_sources(below)
    if tree.cfg is not None and tree.sources:
        check_on_meta(tree.cfg)

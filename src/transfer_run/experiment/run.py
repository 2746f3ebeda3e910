"""The story of one run: is it done? is somebody at it? what does it need first? carry it out, record it.

Nothing here imports torch: a finished run answers at once.
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.config.composed import Run, naming, write_config
from transfer_run.experiment.config.digests import refuse_changed
from transfer_run.experiment.models.export_folder import check_target
from transfer_run.experiment.planning.preflight import check_before
from transfer_run.experiment.record.log import run_log
from transfer_run.experiment.record.state import held
from transfer_run.experiment.record.summary import show_result
from transfer_run.experiment.sources.kinds import check_sources
from transfer_run.experiment.sources.resolve import fetched, refuse_cycle, source_tree, sources_of
from transfer_run.experiment.sources.source import Tree
from transfer_run.files import make_folder, no_room
from transfer_run.run_folder import (
    CHECKPOINTS,
    CONFUSION,
    LOG_FILE,
    METRICS,
    RESULT,
    check_model,
    has_model,
    is_run,
    model_folder,
    predictions_file,
    read_result,
)
from transfer_run.signals import preemptible


def carry_out(run: Run, *, chain: tuple[str, ...] = ()) -> Path:
    """Carry out a run, once; returns its folder.

    A finished run is shown, not repeated (unless `force`); an unfinished one goes on from its last checkpoint; a run
    that another process is at is waited for.

    Args:
        chain: identities of the runs that wait for this one as a source.

    Raises:
        UserError, Preempted, KeyboardInterrupt, RunFailed.
    """
    folder, export, force = run.folder, run.config["export"], run.config["force"]
    if run.config["dry_run"]:
        from transfer_run.experiment.planning.dry_run import show_dry_run

        show_dry_run(run)
        return folder
    if export:
        make_folder(check_target(folder, Path(export)).parent, f"export={export}")
    if read_result(folder) is None or force:
        check_sources(run, sources_of(run))  # what the words alone tell leaves no folder behind
        with held(folder) as lock:
            if read_result(folder) is None or force:
                _carry_out(run, chain, lock)
    else:
        print(f"finished already: {folder} (force=true repeats it)")
    if not chain:
        show_result(folder)
    if export:
        from transfer_run.experiment.models.export import export_run

        print(f"exported to {export_run(folder, Path(export))}")
    return folder


def _carry_out(run: Run, chain: tuple[str, ...], lock: int) -> None:
    from transfer_run.experiment.training.group import check_machines

    check_machines(run.config["hardware"])
    folder, sources = run.folder, ensure_sources(run, (*chain, run.identity))
    refuse_changed(run.config, run.backbones)  # while sources were carried out, or another process was waited for
    for source in sources.values():
        if is_run(source) and has_model(model_folder(source)):
            check_model(model_folder(source))
    if run.config["force"]:
        _clear(folder)
    write_config(folder, run.config)
    from transfer_run.experiment.training.launch import launch, wanted_processes

    alone = wanted_processes(run) == 1
    if alone:  # before the log is redirected: libraries set up theirs on import
        from transfer_run.experiment.training.train import train

    with run_log(folder), preemptible():
        try:
            if alone:
                train(run, folder, sources)
            else:
                launch(run, folder, sources, lock)
        except (UserError, Preempted, RunFailed):
            raise
        except SystemExit as error:  # Lightning's answer to Ctrl-C outside of training steps
            raise KeyboardInterrupt from error
        except Exception as error:
            with suppress(OSError), (folder / LOG_FILE).open("a", encoding="utf-8") as log:  # the disk may be full
                traceback.print_exc(file=log)
            raise RunFailed(folder / LOG_FILE, _reason(error)) from error


def _reason(error: Exception) -> str:
    """In one line; a full disk or a folder that may not be written to is no fault of the run's."""
    if what := no_room(error):
        return f"{what}: the same command goes on from the last checkpoint once there is room to write to"
    if type(error).__name__ == "OutOfMemoryError":
        lower = "trainer.oom=halve, a smaller dataset.batch_size, hardware.activation_checkpointing=true"
        return (
            f"{str(error).splitlines()[0]} (transfer-plan with the same words says what would lower the peak: {lower})"
        )
    return f"{type(error).__name__}: {error}"


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, the result first, so that nothing looks finished meanwhile."""
    (folder / RESULT).unlink(missing_ok=True)
    made = (folder / METRICS, folder / CONFUSION, *folder.glob(predictions_file("*")))
    for path in (*made, *(folder / CHECKPOINTS).rglob("*")):
        if path.is_file():
            path.unlink()


def ensure_sources(run: Run, chain: tuple[str, ...]) -> dict[str, Path]:
    """Folders of all sources by name, each carried out first when it is missing.

    Args:
        chain: identities of the runs that wait, this one last.

    Raises:
        UserError: a circle, words that name nothing, a source that the method does not read, misses or cannot use;
            before the first source is carried out, where it can be known.
        RunFailed: a source broke; its log is named.
    """

    if len(chain) == 1:  # the run that was asked for: what can be known of all below it is known before the first
        tree = source_tree(run)
        missing = any(not below.finished for source in tree.sources for _, below in source.walk())
        for _, each in tree.walk():
            if each.run is not None and not each.finished:
                with naming(each.source.reference) if each.source else nullcontext():
                    check_before(each.run, sources_missing=missing)
        if missing:
            rehearse_sources(tree)
    folders = {}
    for source in sources_of(run):
        refuse_cycle(source, chain)
        with naming(source.reference):
            if source.to_carry_out is not None:
                folders[source.name] = carry_out(source.to_carry_out, chain=chain)
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
        if below.run is not None and not below.finished:
            rehearse_sources(below)
    if tree.run is not None and tree.sources:
        check_on_meta(tree.run)

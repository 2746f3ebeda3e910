"""A sweep: every run is checked before the first one starts, one that fails does not end the others.

How far it is stands in the runs' own folders. So the same command goes on with it, whoever began it and however that
ended, and any other process can be asked (`transfer-run sweep.status=NAME`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import DONE, FAILED, INTERRUPTED, PREEMPTED, Preempted, RunFailed, UserError
from transfer_run.experiment.config.compose import Composer
from transfer_run.experiment.record.state import FINISHED, PLANNED, PRUNED, STATUS, State, held, state_of
from transfer_run.experiment.record.wandb_access import check_key
from transfer_run.files import make_folder, no_room
from transfer_run.sweeps import record, slurm, table
from transfer_run.sweeps.asked import Member, Sweep, folder_of, members_of, plain, with_axes
from transfer_run.sweeps.places import Places, Plans, free_memory, in_a_process, planned_peaks
from transfer_run.sweeps.pool import Ending, Pool, Report
from transfer_run.sweeps.search import Search, corners, metric_of, told
from transfer_run.sweeps.settings import at_once, check_launcher, cores, memory

ROOM = "the same command goes on once there is room to write to, sweep.retry_failed=true repeats what failed"
LOCAL = ("basic", "joblib")
"""Launchers that are processes of this machine."""


def sweep(composer: Composer, words: Sequence[str]) -> int:
    """Carry out a sweep, or with `sweep.trials` a search; returns the exit code.

    Args:
        words: normalised, with several values where the sweep has them.

    Raises:
        UserError: the words of one of its runs are wrong, or there is no room for its folder; none has started.
    """
    try:
        return _sweep(composer, words)
    except Exception as error:
        if isinstance(error, UserError) or not (what := no_room(error)):
            raise
        raise UserError(
            f"The sweep cannot be written down: {what.lower()}.", where="output_dir", remedy=ROOM
        ) from error


def _sweep(composer: Composer, words: Sequence[str]) -> int:
    master = composer.load(words, RunMode.MULTIRUN)
    check_launcher(master)
    words = with_axes(composer, words, master)
    if master.sweep.trials is not None:
        return _search(composer, words, master)
    members = members_of(composer, words)
    asked = _asked(composer, words, master, "\n".join(sorted({member.identity for member in members})), members)
    rows = record.rows_of(asked)
    todo = to_do(rows, retry_failed=master.sweep.retry_failed, force=master.force or master.dry_run)
    for each in todo:
        if each.run is not None:
            check_key(each.run.config["logger"])
    with nullcontext(0) if master.dry_run else record.at_work(asked, rows) as others:
        left = f", {len(members) - len(todo)} of them need none" if len(todo) < len(members) else ""
        print(f"sweep {asked.name}: {len(members)} runs{left}, launcher {asked.launcher}, {asked.folder}", flush=True)
        if others:
            print(
                f"{others} runs that this sweep had before are no part of it any more; their folders stay", flush=True
            )
        work = _work(asked, master, composer)
        if todo:
            _until_stopped(work, lambda: work.carry_out(todo))
        return _summary(asked, work)


def _asked(
    composer: Composer, words: Sequence[str], master: DictConfig, told: str, members: Sequence[Member] = ()
) -> Sweep:
    folder, launcher = folder_of(composer, words, told), master.hydra.runtime.choices["hydra/launcher"]
    return Sweep(folder, plain(words), [str(each) for each in composer.folders], launcher, list(members))


def _until_stopped(work: _Local, carry_out: Callable[[], None]) -> None:
    """Ctrl-C and preemption end the work, and the sweep still says what became of every run."""
    try:
        carry_out()
    except KeyboardInterrupt:
        work.asked = signal.SIGINT
    except Preempted:
        work.asked = signal.SIGTERM
    except Exception as error:
        if not (what := no_room(error)):
            raise
        work.problem = f"{what}: {ROOM}"


def _search(composer: Composer, words: Sequence[str], master: DictConfig) -> int:
    """`sweep.trials=N`: runs that are chosen one after the other."""
    if master.hydra.runtime.choices["hydra/launcher"] not in LOCAL or master.dry_run:
        raise UserError(
            "A search chooses each run by the ones before: it carries them out, on this machine.",
            where="sweep.trials",
            remedy="leave out dry_run, hydra/launcher and hardware=slurm; a search may itself be one job of a cluster",
        )
    for each in corners(words):
        check_key(composer.compose(each).config["logger"])
    metric = metric_of(composer, words, master)
    asked = _asked(composer, words, master, told(words))
    make_folder(asked.folder, f"output_dir: {asked.folder}")
    with held(asked.folder):
        search = Search(asked, composer, words, master, metric)
        print(f"search {asked.name}: {master.sweep.trials} trials by {search.metric}, {asked.folder}", flush=True)
        work = _Local(asked, master, search)
        _until_stopped(work, lambda: work.carry_out(None))
        return _summary(asked, work, search.best())


def _work(asked: Sweep, master: DictConfig, composer: Composer) -> _Local:
    if asked.launcher in LOCAL or (asked.launcher == slurm.LAUNCHER and master.dry_run):
        return _Local(asked, master)
    return _Cluster(asked, master) if asked.launcher == slurm.LAUNCHER else _Launched(asked, master, composer)


def to_do(rows: Sequence[record.Row], *, retry_failed: bool, force: bool) -> list[Member]:
    """The runs to carry out: those that have not finished, and failed ones where `sweep.retry_failed` asks for it."""
    repeated = (STATUS[FAILED],) if retry_failed else ()
    return [row.member for row in rows if force or row.state.goes_on or row.state.status in repeated]


def status(name: str, output_dir: Path) -> int:
    """`sweep.status=NAME`: how far every run is, told from the runs' folders.

    Raises:
        UserError: there is no such sweep.
    """
    found = record.read(record.find(name, output_dir))
    rows = record.rows_of(found)
    if found.launcher == slurm.LAUNCHER and slurm.at_hand():
        rows = slurm.Jobs(found).as_rows(rows)
    print("\n".join([found.command, "", *table.lines_of_status(rows), ""]))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state.status] = counts.get(row.state.status, 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda item: -item[1]))
    print(f"sweep {found.name}: {told} ({found.folder})")
    return DONE


class _Local:
    """Runs as processes of this machine.

    Attributes:
        report: is a page asked for?
        seen: by number, how those ended that leave no record.
        asked: the signal that ended the sweep.
        problem: what broke the launcher.
    """

    def __init__(self, asked: Sweep, master: DictConfig, search: Search | None = None) -> None:
        self.search = search
        self.sweep, self.settings, self.dry_run = asked, master.sweep, bool(master.dry_run)
        self.report = bool(master.report)
        self.parallel = at_once(master)
        self.memory = memory(master)
        self.seen: dict[int, State] = {}
        self.asked: int | None = None
        self.problem = ""

    def carry_out(self, todo: Sequence[Member] | None) -> None:
        """Carry out these runs; None: those that the search chooses."""
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asked of CUDA itself, no child could use it
        import transfer_run.experiment.training.train  # noqa: F401  once, not in every run's process

        several = self.parallel > 1 and (todo is None or len(todo) > 1)
        logs = self.sweep.folder / "logs" if several and not self.dry_run else None
        pool = Pool(self._carry, self.parallel, self._places(todo) if several else Places(), logs)
        runs: Iterable[Member] = todo or ()
        if todo is None and self.search is not None:
            pool.reported, runs = self.search.reported, self.search.members()
        try:
            pool.run(runs, self._begun, self._ended)
        finally:
            self.asked = pool.asked

    def _carry(self, member: Member, report: Report) -> None:
        """One run, in its own process."""
        from transfer_run.cli.carry import carry
        from transfer_run.experiment.training.watch import watch

        assert member.run is not None
        if self.search is not None and self.settings.prune != "none":
            metric = self.search.metric
            watch(member.run.folder, lambda step, scores: metric in scores and report(step, scores[metric]))
        carry(member.run)

    def rows(self) -> list[record.Row]:
        """All runs of the sweep as they are now."""
        return record.rows_of(self.sweep, self.seen)

    def _places(self, todo: Sequence[Member] | None) -> Places:
        free, threads = free_memory(self.memory), max(1, cores() // self.parallel)
        if todo is None:  # trials are not known before they are chosen
            return Places(free, threads=threads, plan=Plans())
        return Places(free, in_a_process(lambda: planned_peaks(todo)), threads)

    def _begun(self, member: Member) -> str:
        stopping = self.settings.stop_on_error and next(
            (row.member for row in record.rows_of(self.sweep, self.seen) if row.state.status in ("failed", "refused")),
            None,
        )
        if stopping:
            return f"not started: run {stopping.number} failed and sweep.stop_on_error=true"
        print(f"#{member.number}: {member.told}", flush=True)
        if self.search is not None:  # a new run of the sweep: other processes can ask for it
            record.write(self.sweep, record.rows_of(self.sweep, self.seen))
        return ""

    def _ended(self, member: Member, ending: Ending) -> None:
        if self.search is not None:
            self.search.ended(member)
        if ending.code == DONE:
            self.seen[member.number] = State(PLANNED if self.dry_run else FINISHED)
            if self.parallel > 1:
                print(f"#{member.number} finished", flush=True)
            return
        if state_of(member.folder).status == PRUNED:
            print(f"#{member.number} {ending.reason}", flush=True)
            return
        status = STATUS.get(ending.code, "killed" if ending.code < 0 else STATUS[FAILED])
        status = "waiting" if ending.reason.startswith("not started") else status
        self.seen[member.number] = State(status, ending.reason)
        print(f"#{member.number} {status}: {ending.reason.splitlines()[0]}", file=sys.stderr, flush=True)


class _Cluster(_Local):
    """Runs as jobs of a Slurm cluster, which go on without this process."""

    def carry_out(self, todo: Sequence[Member] | None) -> None:
        assert todo is not None, "a search is carried out here"
        jobs = slurm.Jobs(self.sweep)
        arrays = jobs.submit(todo)
        for array, members in arrays.items():
            print(f"submitted job {array}: runs {', '.join(str(member.number) for member in members)}", flush=True)
        if there := len(todo) - sum(map(len, arrays.values())):
            print(f"{there} of the runs are with the cluster already, and waited for", flush=True)
        print(f"logs: {jobs.folder}; this command may be left, the jobs go on without it", flush=True)
        try:
            lost = jobs.follow(todo, lambda line: print(line, flush=True))
            self.seen = {member.number: lost[member.identity] for member in todo if member.identity in lost}
        except (KeyboardInterrupt, Preempted, UserError) as error:
            if not isinstance(error, UserError):
                self.asked = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            silent = f"{error.what} " if isinstance(error, UserError) else ""
            self.problem = (
                f"{silent}The jobs go on. transfer-run sweep.status={self.sweep.name} says how far they are, the same "
                f"command waits for them again, scancel --name={jobs.name} ends them."
            )

    def rows(self) -> list[record.Row]:
        return slurm.Jobs(self.sweep).as_rows(super().rows())


class _Launched(_Local):
    """Runs where one of Hydra's launchers sends them."""

    def __init__(self, asked: Sweep, master: DictConfig, composer: Composer) -> None:
        super().__init__(asked, master)
        self.master, self.composer = master, composer

    def carry_out(self, todo: Sequence[Member] | None) -> None:
        assert todo is not None, "a search carries its runs out here"
        from hydra.core.plugins import Plugins
        from hydra.types import HydraContext

        from transfer_run.experiment.config.hydra_parts import Callbacks

        OmegaConf.set_struct(self.master, False)
        self.master.hydra.sweep.dir = str(self.sweep.folder)
        context = HydraContext(config_loader=self.composer.loader, callbacks=Callbacks(self.master))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=self.master)
        try:
            launcher.launch([list(member.words) for member in todo], initial_job_idx=0)
        except (KeyboardInterrupt, UserError):
            raise
        except Exception as error:  # a launcher that breaks must not hide what the runs did
            self.problem = f"{type(error).__name__}: {error}"


def job(_: DictConfig) -> None:
    """One run of a sweep where a launcher has put it; how it ended stands in its folder, and is not raised."""
    hydra = HydraConfig.get()
    words = list(hydra.overrides.task)
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    from transfer_run.cli.carry import carry

    try:
        print(f"#{hydra.job.num + 1}: {' '.join(plain(words))}", flush=True)
        carry(Composer([Path(path) for path in folders]).compose(words))
    except (UserError, RunFailed, Preempted) as error:
        print(f"#{hydra.job.num + 1} failed: {error}", file=sys.stderr, flush=True)


def _summary(asked: Sweep, work: _Local, best: Sequence[str] = ()) -> int:
    """Say what became of every run and write it down; the exit code is that of the worst that happened."""
    rows = work.rows()
    files = "dry_run: nothing is written"
    if not work.dry_run:
        try:
            files = _written(asked, work, rows)
        except Exception as error:
            if not (what := no_room(error)):
                raise
            work.problem, files = work.problem or f"{what}: {ROOM}", f"{asked.folder} is not written whole"
    for line in table.lines_of_runs(rows):
        print(line)
    for number, line in enumerate(table.lines_over_seeds(rows)):
        print(f"\n{line}" if number == 0 else line)
    for line in best:
        print(line)
    counts = Counter(row.state.status for row in rows)
    missing = [row for row in rows if row.state.status not in (FINISHED, PRUNED, PLANNED)]
    done = f"{counts[FINISHED]} of {len(rows)} runs finished"
    done += "".join(
        f", {counts[each]} {said}" for each, said in ((PRUNED, "ended early"), (PLANNED, "planned")) if counts[each]
    )
    print(f"sweep {asked.name}: {done} ({files})", flush=True)
    if work.problem:
        print(work.problem, file=sys.stderr)
    if missing:
        print(f"\n{_how_to_go_on(missing)} Not finished:", file=sys.stderr)
    for row in missing:
        reason = row.state.reason or "no process has begun it"
        print(f"- {row.member.told}\n{_indented(f'{row.state.status}: {reason}')}", file=sys.stderr)
    if work.asked is not None:
        return INTERRUPTED if work.asked == signal.SIGINT else PREEMPTED
    return record.exit_code(rows) or (FAILED if work.problem else DONE)


def _written(asked: Sweep, work: _Local, rows: Sequence[record.Row]) -> str:
    """Write the files of the end; what to say of them."""
    record.write(asked, rows)
    table.write_tables(asked, rows)
    written = [record.NAME, table.CSV, table.MARKDOWN, table.PLOT]
    if work.report:
        from transfer_run.tables.html.sweep import write_report

        written.append(write_report(asked, rows).name)
    return f"{asked.folder}: {', '.join(written)}"


def _how_to_go_on(missing: Sequence[record.Row]) -> str:
    failed = any(row.state.status == STATUS[FAILED] for row in missing)
    others = any(row.state.status != STATUS[FAILED] for row in missing)
    again = "The same command takes up what is missing" if others else ""
    repeat = "sweep.retry_failed=true repeats what failed" if failed else ""
    return "; ".join(filter(None, (again, repeat))) + "."


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())

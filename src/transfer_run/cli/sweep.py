"""A sweep: every run is checked before the first one starts, one that fails does not end the others.

Each run leaves its outcome in the sweep's folder, `jobs/NUMBER.json`, wherever the launcher has sent it; `sweep.csv`
has them side by side.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from transfer_run.cli.sweep_table import NAME as TABLE
from transfer_run.cli.sweep_table import write_table
from transfer_run.errors import DONE, FAILED, PREEMPTED, USER_ERROR, Preempted, RunFailed, UserError
from transfer_run.experiment.config.compose import CONFIG_NAME, Composer
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.hydra_parts import Hydra
from transfer_run.experiment.config.words import parse
from transfer_run.files import write_json

MANY = 20
"""Runs from which on checking all their words takes seconds."""


def sweep(composer: Composer, words: Sequence[str]) -> int:
    """Carry out a sweep with Hydra's sweeper and launcher; returns the exit code.

    Args:
        words: normalised, with several values where the sweep has them.

    Raises:
        UserError: the words of one of its runs are wrong; none has started.
    """
    master = composer.load(words, RunMode.MULTIRUN)
    _check_cluster(master)
    words = with_axes(composer, words, master)
    jobs = _checked_jobs(composer, words, master)
    folder = _new_folder(master)
    launcher = master.hydra.runtime.choices["hydra/launcher"]
    print(f"sweep: {len(jobs) or 'several'} runs, launcher {launcher}, {folder}", flush=True)
    hydra = Hydra.create_main_hydra2("transfer-run", composer.search_path)
    problem = ""
    try:
        hydra.multirun(CONFIG_NAME, job, [*words, f"hydra.sweep.dir='{folder}'", "hydra.mode=MULTIRUN"])
    except (SystemExit, KeyboardInterrupt, UserError):
        raise
    except Exception as error:  # a launcher that breaks (a killed worker) must not hide what the other runs did
        problem = f"{type(error).__name__}: {error}"
    finally:
        GlobalHydra.instance().clear()
    return _summary(folder, jobs, problem)


def with_axes(composer: Composer, words: Sequence[str], master: DictConfig) -> list[str]:
    """The words, and before them the axes of an experiment (`hydra.sweeper.params`) that they do not set anew.

    Hydra compares keys as they are written: `method.rank` in a file and `++method.rank`, the form of our words, would
    be two axes, and the sweep their product.
    """
    if master.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return list(words)
    axes = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items() if value is not None]
    given = {_key(word) for word in words}
    kept = [axis for axis in composer.normalise(axes) if _key(axis) not in given]
    return [*kept, *words, "hydra.sweeper.params=null"]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _checked_jobs(composer: Composer, words: Sequence[str], master: DictConfig) -> list[list[str]]:
    """The words of every run, each composed once; a sweeper that chooses as it goes is asked for none."""
    if master.hydra.runtime.choices["hydra/sweeper"] != "basic":
        composer.compose([word for word in words if not parse(word).is_sweep_override()])
        return []
    jobs = composer.jobs(words)
    if len(jobs) > MANY:
        print(f"checking the words of {len(jobs)} runs", flush=True)
    for number, job_words in enumerate(jobs, start=1):
        try:
            composer.compose(job_words)
        except UserError as error:
            where = f"{error.where}, in run {number} of {len(jobs)}: {readable(job_words)}"
            raise UserError(error.what, where=where, nearest=error.nearest, remedy=error.remedy) from error
    return jobs


def _check_cluster(master: DictConfig) -> None:
    if "Slurm" in str(master.hydra.launcher.get("_target_")) and not shutil.which("srun"):
        raise UserError(
            "There is no Slurm on this machine: `srun` is not found.",
            where=f"hydra/launcher={master.hydra.runtime.choices['hydra/launcher']}",
            remedy="give the command on a login node of the cluster, or choose another hardware or launcher",
        )


def readable(words: Sequence[str]) -> str:
    """Words as a user writes them, without Hydra's own."""
    return " ".join(_plain(words))


def _plain(words: Sequence[str]) -> list[str]:
    return [word.lstrip("+") for word in words if not word.startswith("hydra")]


def _new_folder(master: DictConfig) -> Path:
    """The sweep's own folder, made here so that two sweeps started in one second do not share it."""
    wanted = Path(str(OmegaConf.select(master, "hydra.sweep.dir")))
    folder, number = wanted, 1
    while (folder / "jobs").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    (folder / "jobs").mkdir(parents=True)
    return folder


def job(_: DictConfig) -> None:
    """One run of a sweep, in this process or where the launcher has put it; its outcome is written, never raised."""
    from transfer_run.cli.carry import carry

    hydra = HydraConfig.get()
    words, folder = list(hydra.overrides.task), Path(hydra.sweep.dir)
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    outcome: dict[str, Any] = {
        "words": readable(words), "overrides": _plain(words), "code": DONE, "reason": "", "folder": "",
    }  # fmt: skip
    try:
        run = Composer([Path(path) for path in folders]).compose(words)
        stopped = _reason_to_stop(folder, run)
        print(f"#{hydra.job.num + 1}: {outcome['words']}", flush=True)
        outcome |= {"code": FAILED, "reason": stopped} if stopped else {"folder": str(carry(run))}
    except UserError as error:
        outcome |= {"code": USER_ERROR, "reason": str(error)}
    except RunFailed as error:
        outcome |= {"code": FAILED, "reason": str(error)}
    except Preempted as error:
        outcome |= {"code": PREEMPTED, "reason": str(error) or "stopped by the cluster"}
    if outcome["reason"]:
        print(f"#{hydra.job.num + 1} failed: {outcome['reason'].splitlines()[0]}", file=sys.stderr, flush=True)
    path = folder / "jobs" / f"{hydra.job.num}.json"
    write_json(path, outcome)


def _reason_to_stop(folder: Path, run: Run) -> str:
    codes = [outcome["code"] for outcome in _outcomes(folder).values()]
    if PREEMPTED in codes:
        return "not started: the sweep was preempted"
    if run.config["sweep"]["stop_on_error"] and any(codes):
        return "not started: an earlier run failed and sweep.stop_on_error=true"
    return ""


def _outcomes(folder: Path) -> dict[int, dict[str, Any]]:
    paths = sorted((folder / "jobs").glob("*.json"), key=lambda path: int(path.stem))
    return {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _summary(folder: Path, jobs: Sequence[Sequence[str]], problem: str) -> int:
    """Say what became of every run; the exit code is 0, or 75, 1 or 2 after the worst that happened."""
    outcomes = _outcomes(folder)
    for number, words in enumerate(jobs):
        reason = f"ended without a word: {problem or 'its process was killed'}"
        lost = {"words": readable(words), "overrides": _plain(words), "code": FAILED, "reason": reason, "folder": ""}
        outcomes.setdefault(number, lost)
    for line in write_table(folder, outcomes):
        print(line)
    failed = [outcome for outcome in outcomes.values() if outcome["code"] != DONE]
    done = f"sweep: {len(outcomes) - len(failed)} of {len(outcomes)} runs finished"
    print(f"{done} ({folder}, all metrics in {TABLE})", flush=True)
    if problem and not failed:
        print(problem, file=sys.stderr)
        return FAILED
    if failed:
        print("\nThe same command takes up what is missing. Failed:", file=sys.stderr)
    for outcome in failed:
        print(f"- {outcome['words']}\n{_indented(outcome['reason'])}", file=sys.stderr)
    codes = {outcome["code"] for outcome in failed}
    return next((code for code in (PREEMPTED, FAILED, USER_ERROR) if code in codes), DONE)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())

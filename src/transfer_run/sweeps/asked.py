"""The runs that a sweep asks for, each composed and checked before the first one starts, and where the sweep stands.

NAME follows from the runs themselves: the same command is the same sweep, and so is one that only says otherwise how
they are carried out (launcher, progress, retry_failed).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import Composer
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.words import parse

MANY = 20
"""Runs from which on checking all their words takes seconds."""
SWEEPS = "sweeps"


@dataclass
class Member:
    """One run of a sweep.

    Attributes:
        number: from 1, in the order of the words.
        words: all of them, Hydra's own too: what a launcher composes the run from.
        folder: the run's own.
        run: composed; given away where the run begins, so that many of them do not stay in memory.
    """

    number: int
    words: tuple[str, ...]
    identity: str
    folder: Path
    run: Run | None = field(default=None, repr=False, compare=False)

    @property
    def overrides(self) -> list[str]:
        """The words as a user writes them, without Hydra's own."""
        return plain(self.words)

    @property
    def told(self) -> str:
        return " ".join(self.overrides) or "the default run"


@dataclass
class Sweep:
    """Attributes:
    folder: OUTPUT_DIR/sweeps/NAME, or where `hydra.sweep.dir` says.
    words: of the command.
    config_dirs: the user's own folders of configs.
    launcher: basic, joblib, slurm, ...
    """

    folder: Path
    words: list[str]
    config_dirs: list[str]
    launcher: str
    members: list[Member] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def command(self) -> str:
        words = [f"'{word}'" if re.search(r"[\s()\[\]{}$*]", word) else word for word in plain(self.words)]
        return " ".join(["transfer-run", "-m", *(f"--config-dir {folder}" for folder in self.config_dirs), *words])


def plain(words: Sequence[str]) -> list[str]:
    """Words as a user writes them, without Hydra's own."""
    return [word.lstrip("+") for word in words if not word.startswith("hydra")]


def with_axes(composer: Composer, words: Sequence[str], master: DictConfig) -> list[str]:
    """The words, and before them the axes of an experiment (`hydra.sweeper.params`) that they do not set anew.

    Hydra compares keys as they are written: `method.rank` in a file and `++method.rank`, the form of our words, would
    be two axes, and the sweep their product.
    """
    params = OmegaConf.to_container(master.hydra.sweeper).get("params") or {}  # type: ignore[union-attr]
    if not isinstance(params, dict):
        raise UserError("hydra.sweeper.params is a group of keys.", where="hydra.sweeper.params", remedy="-m KEY=a,b")
    axes = [f"{key}={value}" for key, value in params.items() if value is not None]
    given = {key_of(word) for word in words}
    kept = [axis for axis in composer.normalise(axes) if key_of(axis) not in given]
    return [*kept, *words, "hydra.sweeper.params=null"]


def key_of(word: str) -> str:
    """The key that a word sets."""
    return word.lstrip("+~").partition("=")[0]


def members_of(composer: Composer, words: Sequence[str]) -> list[Member]:
    """The runs of all combinations, in order.

    Raises:
        UserError: the words of one of them are wrong; it is named.
    """
    jobs = composer.jobs(words)
    if len(jobs) > MANY:
        print(f"checking the words of {len(jobs)} runs", flush=True)
    return [member(composer, number, job, len(jobs)) for number, job in enumerate(jobs, start=1)]


def member(composer: Composer, number: int, words: Sequence[str], total: int | None = None) -> Member:
    """One run, composed.

    Raises:
        UserError: its words are wrong.
    """
    try:
        run = composer.compose(words)
    except UserError as error:
        of = f" of {total}" if total else ""
        where = f"{error.where}, in run {number}{of}: {' '.join(plain(words))}"
        raise UserError(error.what, where=where, nearest=error.nearest, remedy=error.remedy) from error
    return Member(number, tuple(words), run.identity, run.folder.absolute(), run)


def folder_of(composer: Composer, words: Sequence[str], told: str) -> Path:
    """Where the sweep stands.

    Args:
        words: with several values where the sweep has them.
        told: what makes it this sweep and no other: the identities of its runs, or a search's space.

    Raises:
        UserError: `sweep.name` cannot be the name of a folder.
    """
    master = composer.load(words, RunMode.MULTIRUN)
    wanted, default = (Path(str(OmegaConf.select(master, key))) for key in ("hydra.sweep.dir", "output_dir"))
    if wanted != default / SWEEPS:
        return wanted
    name = OmegaConf.select(master, "sweep.name")
    if name is not None and not re.fullmatch(r"[\w][\w.,=+-]*", str(name)):
        raise UserError(
            f"{str(name)!r} cannot be the name of a sweep's folder.",
            where="sweep.name",
            remedy="letters, digits and . , = + - _",
        )
    axes = [key_of(word).rpartition(".")[2].replace("/", "_") for word in words if parse(word).is_sweep_override()]
    slug = "-".join(dict.fromkeys(axes))[:60] or "run"
    return wanted / str(name or f"{slug}-{hashlib.sha256(told.encode()).hexdigest()[:8]}")

"""A source of a run, and the tree of all below it: what they are, not how they are found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from transfer_run.errors import RunFailed, UserError

INHERITED = ("output_dir", "hardware", "search_path", "trainer.progress", "logger")
"""What a source run takes from the run that asks for it: where and on what it runs, never what it computes."""


ROWS = "dataset.rows"
"""Name of the source that says which rows of the data set are read."""


HUB = "hub:"


@dataclass(frozen=True)
class Source:
    """A resolved source: a run to be found or carried out (`cfg`), a folder that is there (`folder`), or a model of
    the hub (`hub`, NAME or NAME@REVISION)."""

    name: str
    words: str
    cfg: DictConfig | None = None
    folder: Path | None = None
    hub: str | None = None

    @property
    def key(self) -> str:
        """The key of the config that names it."""
        return key_of(self.name)

    @property
    def label(self) -> str:
        """What the source is called in a tree of runs."""
        stages = len(self.cfg.stages) if self.cfg is not None and self.name == "backbone" else 0
        return f"stage {stages}" if stages else self.name


def key_of(name: str) -> str:
    """The key of the config that names the source `name`."""
    if name.startswith("pool."):
        return f"method.{name}"
    return {"backbone": "backbone.weights", ROWS: ROWS}.get(name, f"sources.{name}")


@dataclass
class Tree:
    """A run and the runs below it, for `dry_run=true`.

    Attributes:
        cfg: None where the source is a folder or a model of the hub.
        folder: where it is; the hub's name of a model that is not on this machine.
        finished: is it there?
    """

    name: str
    cfg: DictConfig | None
    folder: Path
    finished: bool
    sources: list[Tree] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Tree]]:
        yield depth, self
        for source in self.sources:
            yield from source.walk(depth + 1)


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Errors of a source say whose they are."""
    try:
        yield
    except UserError as error:
        where = error.where if error.where.startswith(source.key) else f"{source.key}: {error.where or source.words}"
        raise UserError(error.what, where=where, nearest=error.nearest, remedy=error.remedy) from error
    except RunFailed as error:
        raise RunFailed(error.log, f"the source {source.name!r} ({source.words}) failed: {error.reason}") from error

"""A source of a run, and the tree of all below it: what they are, not how they are found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.references import BACKBONE, Reference
from transfer_run.run_folder import is_run, read_config

HUB = "hub:"


@dataclass(frozen=True)
class Source:
    """A reference that was followed: to a run to be found or carried out (`run`), a folder that is there (`folder`; if
    it is a run's, that run beside it), or a model of the hub (`hub`, NAME or NAME@REVISION)."""

    reference: Reference
    run: Run | None = None
    folder: Path | None = None
    hub: str | None = None

    @property
    def name(self) -> str:
        return self.reference.name

    @property
    def where(self) -> str:
        """The place in the config, for messages."""
        return f"{self.reference.key}: {self.reference.words}"

    @property
    def to_carry_out(self) -> Run | None:
        """The run that is named by its words; None of what has to be there already."""
        return self.run if self.folder is None else None

    @property
    def config(self) -> Mapping[str, Any] | None:
        """Of the run, however it is named; None of a model of a library or the hub."""
        if self.run is not None:
            return self.run.config
        return read_config(self.folder) if self.folder is not None and is_run(self.folder) else None

    @property
    def label(self) -> str:
        """What the source is called in a tree of runs."""
        stages = len(self.run.config["stages"]) if self.to_carry_out and self.run and self.name == BACKBONE else 0
        return f"stage {stages}" if stages else self.name


@dataclass
class Tree:
    """A run and the runs below it, for `dry_run=true`.

    Attributes:
        source: that it is of the run above; None of the run that was asked for.
        run: None where the source is a folder or a model of the hub.
        folder: where it is; the hub's name of a model that is not on this machine.
        finished: is it there?
    """

    source: Source | None
    run: Run | None
    folder: Path
    finished: bool
    sources: list[Tree] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As the tree shows it; empty of the run that was asked for."""
        if self.source is None:
            return ""
        return self.source.label if self.run is not None else self.source.name

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Tree]]:
        yield depth, self
        for source in self.sources:
            yield from source.walk(depth + 1)

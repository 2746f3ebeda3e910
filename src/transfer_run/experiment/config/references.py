"""What a run reads of others: every key of its config that names a run, a model or a backbone, found here and nowhere
else. Identity, digests, checks before the run, dry run and the sources themselves ask this list.

    sources.NAME                  a run that the method reads
    backbone.weights              run:WORDS or stage:WORDS
    method.pool                   the same, of a member of the pool
    dataset.rows                  run:WORDS, or a file or folder

What is named is a run by its words, a run or model by its folder, a finished run by the beginning of its identity, or
a model of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import Weights
from transfer_run.run_folder import RESULT

BACKBONE, ROWS = "backbone", "dataset.rows"
"""Names of the sources that other keys than `sources` name."""

RUN = "run:"
_IDENTITY = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Reference:
    """One key that names a run, or what could be one.

    Attributes:
        name: what the run calls it: `sources` of its context has it under this name.
        key: the config's key.
        words: what is named, without `run:` or `stage:`.
        place: where it stands in what the identity is made of.
        start: `run:` or `stage:` before the words, where the identity keeps it.
        of_run: False where a file or folder of another kind is named.
    """

    name: str
    key: str
    words: str
    place: tuple[str, ...]
    start: str = ""
    of_run: bool = True

    @property
    def is_words(self) -> bool:
        """Are these the words of a run, and not a folder, an identity or a model of the hub?"""
        return "=" in self.words

    @property
    def folder(self) -> Path | None:
        """The folder or file that is named and exists."""
        path = Path(self.words).expanduser()
        return path if not self.is_words and path.exists() else None

    @property
    def is_identity(self) -> bool:
        return _IDENTITY.fullmatch(self.words) is not None

    def finished(self, output_dir: str) -> list[Path]:
        """Folders of the finished runs whose identity begins as the words say."""
        found = (Path(output_dir) / "runs").glob(f"**/*-{self.words[:8]}*/{RESULT}") if self.is_identity else ()
        return sorted(result.parent for result in found)

    def told(self, identity: str | None) -> str:
        """The form that all ways of naming it share: the first 8 digits of the run's identity, or the folder.

        Args:
            identity: of the run behind it, where there is one.
        """
        if identity is not None:
            return f"{self.start}{identity[:8]}"
        if self.folder is not None:
            return f"{self.start}{self.folder.resolve()}"
        return self.start + (self.words[:8] if self.is_identity else self.words)


def references(config: Mapping[str, Any], backbones: Mapping[str, Mapping[str, Any]]) -> tuple[Reference, ...]:
    """All references of a composed config, in the order in which their runs are carried out.

    Args:
        backbones: those that the method's keys name, by their words.
    """
    return tuple(_references(config, backbones))


def _references(config: Mapping[str, Any], backbones: Mapping[str, Mapping[str, Any]]) -> Iterator[Reference]:
    for name, words in (config.get("sources") or {}).items():
        yield Reference(name, f"sources.{name}", str(words), ("sources", name))
    named = {"backbone": (BACKBONE, config.get("backbone") or {})}
    named |= {f"method.pool.{words}": (f"pool.{words}", node) for words, node in backbones.items()}
    for key, (name, node) in named.items():
        weights = Weights.of(node)
        place = ("backbone", "weights") if name == BACKBONE else ("candidates", name.removeprefix("pool."), "weights")
        if weights.of_run:
            shown = "backbone.weights" if name == BACKBONE else key
            yield Reference(name, shown, weights.words, place, f"{weights.kind}:")
    if rows := (config.get("dataset") or {}).get("rows"):
        words = str(rows).removeprefix(RUN)
        yield Reference(ROWS, ROWS, words, ("dataset", "rows"), of_run=words != str(rows))

"""What a run makes, by kind: `artifact/KIND.yaml`, packaged or in a folder of the user's own. Imports nothing heavy.

    says: a folder of images         what messages call it
    at: images                       where it lies in the run's folder
    fits: [backbone.weights]         keys of every run that read it; keys of a data set or a method say so themselves

A method says what it makes (`about.makes`); where it does not, its shape tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compatibility import without_data
from transfer_run.run_folder import read_config

GROUP = "artifact"
OF_SHAPE = {"score": "ranking", "reshape": "rows"}
"""What runs of these shapes make; all others make a model."""


@dataclass(frozen=True)
class Artifact:
    """One kind of what runs make.

    Attributes:
        says: what messages call it.
        at: where it lies in the run's folder.
        fits: keys of every run that read it.
    """

    kind: str
    says: str
    at: str = "."
    fits: tuple[str, ...] = ()

    def path(self, run: Path) -> Path:
        """Where a finished run keeps it.

        Raises:
            UserError: the run has not made it.
        """
        path = run / self.at
        if not path.exists():
            raise UserError(
                f"That run was to make {self.says}, and there is none.",
                where=str(path),
                remedy=f"the run's method writes it to {self.at} in the run's folder",
            )
        return path


def artifact(kind: str, folders: Sequence[Path] = (), where: str = "") -> Artifact:
    """A kind by its name.

    Raises:
        UserError: there is no such kind.
    """
    known = registry.names(GROUP, folders)
    if kind not in known:
        raise UserError(
            f"There is no kind of artifact {kind!r}.",
            where=where,
            nearest=nearest_names(kind, known) or known,
            remedy="a kind of your own is a file artifact/KIND.yaml in your folder of configs",
        )
    node = registry.entry(GROUP, kind, folders).content[GROUP]
    return Artifact(kind, str(node.get("says", kind)), str(node.get("at", ".")), tuple(node.get("fits") or ()))


def fitting(key: str, folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """The kinds that a key of every run reads."""
    return tuple(kind for kind in registry.names(GROUP, folders) if key in artifact(kind, folders).fits)


def makes(config: Mapping[str, Any]) -> str:
    """The kind of what the run of a composed config makes."""
    about = (config.get("method") or {}).get("about") or {}
    if about.get("shape") == "combine" and without_data(config) and not config.get("sources"):
        return "files"
    return str(about.get("makes") or OF_SHAPE.get(str(about.get("shape")), "model"))


def made(run: Path) -> Artifact:
    """What the run of this folder has made."""
    config = read_config(run)
    return artifact(makes(config), [Path(folder) for folder in config.get("search_path") or ()], str(run))

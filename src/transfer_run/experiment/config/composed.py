"""A run, as it is before it is carried out: what its words stand for, and what follows from that. Nothing heavy.

`compose` makes it once; everything that plans, carries out, records or shows a run is handed this one object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from transfer_run.backbones.weights.names import Weights
from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment.config.compatibility import without_data
from transfer_run.experiment.config.identity import differ_in_nothing, identity
from transfer_run.experiment.config.references import Backbones, Reference
from transfer_run.files import write_atomically
from transfer_run.run_folder import CONFIG

INHERITED = ("output_dir", "hardware", "search_path", "logger")
"""What a source run takes from the run that asks for it, and `trainer.progress`: where and on what it runs, never what
it computes."""


@dataclass(frozen=True)
class Run:
    """One composed config, carried out once.

    Attributes:
        config: plain containers, resolved and valid; nobody changes them.
        identity: of what determines the result, 64 hexadecimal digits.
        references: what it reads of other runs, in the order in which they are carried out.
        sources: the runs behind them, by the references' names; not those of folders, identities and the hub.
        backbones: nodes of the backbones that the method's keys name, by key and words.
    """

    config: Mapping[str, Any]
    identity: str
    references: tuple[Reference, ...] = ()
    sources: Mapping[str, Run] = field(default_factory=dict)
    backbones: Backbones = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        references: tuple[Reference, ...],
        sources: Mapping[str, Run],
        backbones: Backbones,
    ) -> Run:
        """The run of a valid config whose references have been followed."""
        told = {
            each: each.canonical(sources[each.name].identity if each.name in sources else None) for each in references
        }
        return cls(config, identity(config, told, backbones), references, sources, backbones)

    def chosen(self, group: str) -> str:
        """The name of the chosen method, backbone, dataset, ..."""
        return str(self.config[group]["name"])

    @cached_property
    def folder(self) -> Path:
        """`OUTPUT_DIR/runs/<dataset>/<method>-<backbone>-<8 hex>`; a `/` in method or backbone becomes `_`."""
        parts = (self.chosen("method"), self.chosen("backbone"), self.identity[:8])
        name = "-".join(part.replace("/", "_") for part in parts)
        return Path(str(self.config["output_dir"])) / "runs" / self.chosen("dataset") / name

    @cached_property
    def weights(self) -> Weights:
        """What the backbone starts from."""
        return Weights.of(self.config["backbone"])

    @property
    def search_path(self) -> list[Path]:
        """The user's own config folders."""
        return [Path(folder) for folder in self.config["search_path"]]

    @property
    def has_data(self) -> bool:
        """Is there a data set, and not `dataset=none`?"""
        return not without_data(self.config)

    def changed(self, **nodes: Mapping[str, Any]) -> Run:
        """The same run with keys of these nodes set anew, for what is known only while it is planned or carried out.

        Its identity stays: that is the one of its words.
        """
        return replace(self, config={**self.config, **{k: {**self.config[k], **node} for k, node in nodes.items()}})

    def below(self, asking: Run) -> Run:
        """This run as a source of another one, from which it takes where and on what it runs."""
        config = {**self.config, **{key: asking.config[key] for key in INHERITED}}
        config["trainer"] = {**config["trainer"], "progress": asking.config["trainer"]["progress"]}
        if differ_in_nothing(
            *({"hardware": each["hardware"]} for each in (config, self.config))
        ):  # all else is neutral
            return replace(self, config=config)
        return Run.of(config, self.references, self.sources, self.backbones)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a run's config into its folder, as `run_folder.read_config` reads it."""
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))


@contextmanager
def naming(reference: Reference) -> Iterator[None]:
    """Errors of a run that another one needs say whose they are."""
    try:
        yield
    except UserError as error:
        whose = reference.key
        where = error.where if error.where.startswith(whose) else f"{whose}: {error.where or reference.words}"
        raise UserError(error.what, where=where, nearest=error.nearest, remedy=error.remedy) from error
    except RunFailed as error:
        reason = f"the source {reference.name!r} ({reference.words}) failed: {error.reason}"
        raise RunFailed(error.log, reason) from error

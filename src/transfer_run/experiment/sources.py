"""Earlier runs that a run needs: found by their identity, carried out when missing, never twice.

A source is named in one of four ways:

    sources.teacher="method=full dataset=glue/rte"     a run's words: found, or carried out first
    sources.teacher=3f9a01cc                           the identity (or its beginning) of a finished run
    sources.teacher=outputs/runs/glue/rte/full-...     a run's folder
    sources.teacher=/models/bert-rte                   any other folder: a checkpoint, handed on as it is
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment.candidates import candidate_configs
from transfer_run.experiment.compose import compose
from transfer_run.experiment.identity import identity, run_folder
from transfer_run.experiment.record import read_result

INHERITED = ("output_dir", "hardware", "search_path", "trainer.progress", "logger")
"""What a source run takes from the run that asks for it: where and on what it runs, never what it computes."""

RUN = "run:"


@dataclass(frozen=True)
class Source:
    """A resolved source: a run to be found or carried out (`cfg`), or a folder that is there (`folder`)."""

    name: str
    words: str
    cfg: DictConfig | None = None
    folder: Path | None = None


@dataclass
class Tree:
    """A run and the runs below it, for `dry_run=true`."""

    name: str
    cfg: DictConfig | None
    folder: Path
    finished: bool
    sources: list[Tree] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Tree]]:
        yield depth, self
        for source in self.sources:
            yield from source.walk(depth + 1)


def model_folder(run: Path) -> Path:
    """Where a finished run keeps its model; a folder that is no run is a model folder itself."""
    return run / "checkpoints" / "model" if (run / "config.yaml").is_file() else run


def sources_of(cfg: DictConfig) -> list[Source]:
    """All sources of a run; weights that name a run (`run:...`) are the source `backbone`, or `pool.NAME` in a pool.

    Raises:
        UserError: words that name neither a run nor a folder.
    """
    words = {name: str(value) for name, value in cfg.sources.items()}
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    pool = candidate_configs(values, [Path(folder) for folder in values["search_path"]])
    for name, backbone in {"backbone": values["backbone"], **{f"pool.{k}": v for k, v in pool.items()}}.items():
        if str(backbone["weights"]).startswith(RUN):
            words[name] = str(backbone["weights"])[len(RUN) :]
    return [_resolve(name, value, cfg) for name, value in words.items()]


def _resolve(name: str, words: str, cfg: DictConfig) -> Source:
    if "=" in words:
        source = compose(shlex.split(words), search_path=list(cfg.search_path))
        for key in INHERITED:
            OmegaConf.update(source, key, OmegaConf.select(cfg, key), force_add=True)
        return Source(name, words, cfg=source)
    if Path(words).is_dir():
        return Source(name, words, folder=_checked(name, Path(words)))
    if re.fullmatch(r"[0-9a-f]{6,64}", words):
        found = sorted((Path(cfg.output_dir) / "runs").glob(f"**/*-{words[:8]}*/result.json"))
        if len(found) == 1:
            return Source(name, words, folder=found[0].parent)
        what = "No finished run has" if not found else f"{len(found)} runs have"
        raise UserError(
            f"{what} the identity {words}.", where=f"sources.{name}", remedy="give the run's words or folder"
        )
    raise UserError(
        f"The source {name!r} is neither a run's words, nor an identity, nor a folder: {words!r}.",
        where=f"sources.{name}",
        remedy='write for example sources.teacher="method=full dataset=glue/rte", or a folder that exists',
    )


def _checked(name: str, folder: Path) -> Path:
    """A run's folder must hold a finished run; any other folder must hold a model."""
    if (folder / "config.yaml").is_file() and read_result(folder) is None:
        raise UserError(
            f"The source {name!r} is a run that has not finished.",
            where=f"sources.{name}: {folder}",
            remedy="let it finish, or give its words instead of its folder",
        )
    if not any(folder.rglob("*.safetensors")):
        raise UserError(
            f"The source {name!r} is a folder without weights.",
            where=f"sources.{name}: {folder}",
            remedy="name a folder that holds .safetensors files",
        )
    return folder


def _refuse_cycle(source: Source, chain: tuple[str, ...]) -> None:
    if source.cfg is not None and identity(source.cfg) in chain:
        raise UserError(
            f"The source {source.name!r} needs the run that asks for it: a circle.",
            where=f"sources.{source.name}: {source.words}",
            remedy="name another source",
        )


def ensure_sources(cfg: DictConfig, chain: tuple[str, ...]) -> dict[str, Path]:
    """Folders of all sources by name, each carried out first when it is missing.

    Args:
        chain: identities of the runs that wait, this one last.

    Raises:
        UserError: a circle, or words that name nothing.
        RunFailed: a source broke; its log is named.
    """
    from transfer_run.experiment.run import carry_out

    folders = {}
    for source in sources_of(cfg):
        _refuse_cycle(source, chain)
        if source.folder is not None:
            folders[source.name] = source.folder
            continue
        assert source.cfg is not None
        try:
            folders[source.name] = carry_out(source.cfg, chain=chain)
        except RunFailed as error:
            raise RunFailed(error.log, f"the source {source.name!r} ({source.words}) failed: {error.reason}") from error
    return folders


def source_tree(cfg: DictConfig, name: str = "", chain: tuple[str, ...] = ()) -> Tree:
    """The run and all below it, with what is finished; carries out nothing."""
    folder = run_folder(cfg)
    tree = Tree(name, cfg, folder, read_result(folder) is not None)
    chain = (*chain, identity(cfg))
    for source in sources_of(cfg):
        _refuse_cycle(source, chain)
        if source.cfg is not None:
            tree.sources.append(source_tree(source.cfg, source.name, chain))
        else:
            assert source.folder is not None
            tree.sources.append(Tree(source.name, None, source.folder, True))
    return tree


def resolved_backbone(backbone: dict[str, Any], sources: dict[str, Path], name: str = "backbone") -> dict[str, Any]:
    """A backbone's config with weights of a source run replaced by its model folder.

    Args:
        name: of the source that the weights are: `backbone`, or `pool.NAME`.
    """
    from_run = name in sources and str(backbone["weights"]).startswith(RUN)
    return {**backbone, "weights": str(model_folder(sources[name]))} if from_run else backbone

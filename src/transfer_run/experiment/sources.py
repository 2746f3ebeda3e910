"""Earlier runs that a run needs: found by their identity, carried out when missing, never twice.

A source is named in one of five ways:

    sources.teacher="method=full dataset=glue/rte"     a run's words: found, or carried out first
    sources.teacher=3f9a01cc                           the identity (or its beginning) of a finished run
    sources.teacher=outputs/runs/glue/rte/full-...     a run's folder
    sources.teacher=/models/bert-rte                   any other folder: a checkpoint of transformers or timm
    sources.teacher=google-bert/bert-base-uncased      a model of the hub, at a revision: hub:NAME@REVISION
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import RunFailed, UserError, nearest_names
from transfer_run.experiment.candidates import candidate_configs
from transfer_run.experiment.compose import compose
from transfer_run.experiment.identity import RUN, STARTS, identity, run_folder
from transfer_run.experiment.preflight import check_before
from transfer_run.experiment.record import read_result
from transfer_run.experiment.source_kinds import check_sources

INHERITED = ("output_dir", "hardware", "search_path", "trainer.progress", "logger")
"""What a source run takes from the run that asks for it: where and on what it runs, never what it computes."""

ROWS = "dataset.rows"
"""Name of the source that says which rows of the data set are read."""

HUB = "hub:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


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


def model_folder(run: Path) -> Path:
    """Where a finished run keeps its model; a folder that is no run is a model folder itself."""
    return run / "checkpoints" / "model" if (run / "config.yaml").is_file() else run


def sources_of(cfg: DictConfig) -> list[Source]:
    """All sources of a run; weights that name a run (`run:...`, `stage:...`) are the source `backbone`, or
    `pool.NAME` in a pool, and a run that says which rows are read (`dataset.rows=run:...`) is `dataset.rows`.

    Raises:
        UserError: words that name neither a run, nor a folder, nor a model of the hub; or a run of another kind.
    """
    words = {name: str(value) for name, value in cfg.sources.items()}
    found: dict[str, Source] = {}
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    pool = candidate_configs(values, [Path(folder) for folder in values["search_path"]])
    for name, backbone in {"backbone": values["backbone"], **{f"pool.{k}": v for k, v in pool.items()}}.items():
        start, _, rest = str(backbone["weights"]).partition(":")
        if f"{start}:" in STARTS:
            words[name] = rest
            found[name] = _of_family(_resolve(name, rest, cfg), backbone)
    if (rows := str(values["dataset"].get("rows"))).startswith(RUN):
        words[ROWS] = rows.removeprefix(RUN)
    return [found.get(name) or _resolve(name, value, cfg) for name, value in words.items()]


def _of_family(source: Source, backbone: dict[str, Any]) -> Source:
    """Weights come from a run on a backbone of the same kind."""
    if source.cfg is not None and source.cfg.backbone.family != backbone["family"]:
        raise UserError(
            f"Weights for backbone={backbone['name']} (family {backbone['family']}) cannot come from a run on "
            f"backbone={source.cfg.backbone.name} (family {source.cfg.backbone.family}).",
            where=f"backbone.weights: {source.words}",
            remedy="use one backbone in both",
        )
    return source


def _resolve(name: str, words: str, cfg: DictConfig) -> Source:
    if "=" in words:
        source = compose(shlex.split(words), search_path=list(cfg.search_path))
        for key in INHERITED:
            OmegaConf.update(source, key, OmegaConf.select(cfg, key), force_add=True)
        return Source(name, words, cfg=source)
    place = Path(words).expanduser()
    if place.is_dir():
        return Source(name, words, folder=_checked(name, place))
    if re.fullmatch(r"[0-9a-f]{6,64}", words):
        found = sorted((Path(cfg.output_dir) / "runs").glob(f"**/*-{words[:8]}*/result.json"))
        if len(found) == 1:
            return Source(name, words, folder=found[0].parent)
        what = "No finished run has" if not found else f"{len(found)} runs have"
        raise UserError(
            f"{what} the identity {words}.", where=f"{key_of(name)}: {words}", remedy="give the run's words or folder"
        )
    if words.startswith(HUB) or (_HUB_NAME.fullmatch(words) and not place.parent.exists()):
        return Source(name, words, hub=words.removeprefix(HUB))
    beside = [str(path) for path in place.parent.glob("*") if path.is_dir()]
    raise UserError(
        f"The source {name!r} is a file, not a folder."
        if place.is_file()
        else f"The source {name!r} is neither a run's words, nor an identity, nor a folder: {words!r}.",
        where=f"{key_of(name)}: {words}",
        nearest=nearest_names(words, beside),
        remedy='write for example sources.teacher="method=full dataset=glue/rte", a folder that exists, or hub:NAME',
    )


def _checked(name: str, folder: Path) -> Path:
    """A run's folder must hold a finished run (of any kind); any other folder must hold weights."""
    if (folder / "config.yaml").is_file():
        if read_result(folder) is not None:
            return folder
        raise UserError(
            f"The source {name!r} is a run that has not finished.",
            where=f"{key_of(name)}: {folder}",
            remedy="let it finish, or give its words instead of its folder",
        )
    if not any(any(folder.rglob(kind)) for kind in ("*.safetensors", "pytorch_model*.bin")):
        raise UserError(
            f"The source {name!r} is a folder without weights.",
            where=f"{key_of(name)}: {folder}",
            remedy="name a run's folder, or one that holds .safetensors files",
        )
    return folder


def _refuse_cycle(source: Source, chain: tuple[str, ...]) -> None:
    if source.cfg is not None and identity(source.cfg) in chain:
        raise UserError(
            f"The source {source.name!r} needs the run that asks for it: a circle.",
            where=f"{source.key}: {source.words}",
            remedy="name another source",
        )


def ensure_sources(cfg: DictConfig, chain: tuple[str, ...]) -> dict[str, Path]:
    """Folders of all sources by name, each carried out first when it is missing.

    Args:
        chain: identities of the runs that wait, this one last.

    Raises:
        UserError: a circle, words that name nothing, a source that the method does not read, misses or cannot use;
            before the first source is carried out, where it can be known.
        RunFailed: a source broke; its log is named.
    """
    from transfer_run.experiment.run import carry_out

    if len(chain) == 1:  # the run that was asked for: what can be known of all below it is known before the first
        tree = source_tree(cfg)
        missing = any(not below.finished for source in tree.sources for _, below in source.walk())
        for _, run in tree.walk():
            if run.cfg is not None and not run.finished:
                with _naming(Source(run.name, "")) if run.name else nullcontext():
                    check_before(run.cfg, sources_missing=missing)
        if missing:
            rehearse_sources(tree)
    folders = {}
    for source in sources_of(cfg):
        _refuse_cycle(source, chain)
        with _naming(source):
            if source.cfg is not None:
                folders[source.name] = carry_out(source.cfg, chain=chain)
            else:
                folders[source.name] = source.folder or fetched(source)
    return folders


def rehearse_sources(tree: Tree) -> None:
    """Do the models of sources fit the methods that will read them? Asked of shapes alone, where a run has sources.

    Raises:
        UserError: as the method itself would refuse them.
    """
    from transfer_run.experiment.source_models import check_on_meta

    for below in tree.sources:
        if below.cfg is not None and not below.finished:
            rehearse_sources(below)
    if tree.cfg is not None and tree.sources:
        check_on_meta(tree.cfg)


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


def fetched(source: Source) -> Path:
    """The snapshot of a model of the hub."""
    from transfer_run.backbones.hub import fetch_weights

    assert source.hub is not None
    name, _, revision = source.hub.partition("@")
    try:
        return fetch_weights(name, revision or None)
    except UserError as error:
        raise UserError(
            f"The source {source.name!r} is a model of the hub that cannot be had: {error.what}",
            where=f"{source.key}: {source.words}",
            remedy=f"fetch it where there is a network (hf download {name}), or name a folder or a run's words",
        ) from error


def source_tree(cfg: DictConfig, name: str = "", chain: tuple[str, ...] = ()) -> Tree:
    """The run and all below it, with what is finished; carries out nothing."""
    folder = run_folder(cfg)
    tree = Tree(name, cfg, folder, read_result(folder) is not None)
    chain = (*chain, identity(cfg))
    sources = sources_of(cfg)
    check_sources(cfg, sources)
    for source in sources:
        _refuse_cycle(source, chain)
        if source.cfg is not None:
            with _naming(source):
                tree.sources.append(source_tree(source.cfg, source.label, chain))
        elif source.folder is not None:
            tree.sources.append(Tree(source.name, None, source.folder, True))
        else:
            tree.sources.append(Tree(source.name, None, *_on_this_machine(source)))
    return tree


def _on_this_machine(source: Source) -> tuple[Path, bool]:
    """Where a model of the hub is cached, or its name; and whether it is."""
    from transfer_run.backbones.hub import cached_weights

    name, _, revision = str(source.hub).partition("@")
    folder = cached_weights(name, revision or None)
    return folder or Path(name), folder is not None


def resolved_backbone(backbone: dict[str, Any], sources: dict[str, Path], name: str = "backbone") -> dict[str, Any]:
    """A backbone's config with weights of a source run replaced by the folder of its model, merged where need be.

    Args:
        name: of the source that the weights are: `backbone`, or `pool.NAME`.
    """
    if name not in sources or f"{str(backbone['weights']).partition(':')[0]}:" not in STARTS:
        return backbone
    from transfer_run.experiment.handover import whole_model

    return {**backbone, "weights": str(whole_model(sources[name]))}


def resolved_dataset(dataset: dict[str, Any], sources: dict[str, Path]) -> dict[str, Any]:
    """A dataset's config with `rows` of a source run replaced by that run's folder."""
    return {**dataset, "rows": str(sources[ROWS])} if ROWS in sources else dataset

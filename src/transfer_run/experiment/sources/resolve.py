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
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.identity import RUN, STARTS, identity, run_folder
from transfer_run.experiment.config.pool import candidate_configs
from transfer_run.experiment.sources.kinds import check_sources
from transfer_run.experiment.sources.source import HUB, INHERITED, ROWS, Source, Tree, _naming, key_of
from transfer_run.run_folder import is_run, read_result

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


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
    if is_run(folder):
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


def fetched(source: Source) -> Path:
    """The snapshot of a model of the hub."""
    from transfer_run.backbones.weights.hub import fetch_weights

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
    from transfer_run.backbones.weights.hub import cached_weights

    name, _, revision = str(source.hub).partition("@")
    folder = cached_weights(name, revision or None)
    return folder or Path(name), folder is not None


def resolved_dataset(dataset: dict[str, Any], sources: dict[str, Path]) -> dict[str, Any]:
    """A dataset's config with `rows` of a source run replaced by that run's folder."""
    return {**dataset, "rows": str(sources[ROWS])} if ROWS in sources else dataset

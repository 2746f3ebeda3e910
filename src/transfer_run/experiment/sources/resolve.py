"""Earlier runs that a run needs: found by their identity, carried out when missing, never twice.

A source is named in one of five ways:

    sources.teacher="method=full dataset=glue/rte"     a run's words: found, or carried out first
    sources.teacher=3f9a01cc                           the identity (or its beginning) of a finished run
    sources.teacher=outputs/runs/glue/rte/full-...     a run's folder
    sources.teacher=/models/bert-rte                   any other folder: a checkpoint of transformers or timm
    sources.teacher=google-bert/bert-base-uncased      a model of the hub, at a revision: hub:NAME@REVISION
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import is_hub_name
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.artifacts import made
from transfer_run.experiment.config.compatibility import without_data
from transfer_run.experiment.config.compose import saved
from transfer_run.experiment.config.composed import Run, naming
from transfer_run.experiment.config.references import BACKBONE, TOKENIZER, Reference, references
from transfer_run.experiment.sources.kinds import check_sources
from transfer_run.experiment.sources.source import HUB, Source, Tree
from transfer_run.files import user_path
from transfer_run.run_folder import is_run, read_config, read_result


def sources_of(run: Run) -> list[Source]:
    """All sources of a run, one for each of its references but files.

    Raises:
        UserError: words that name neither a run, nor a folder, nor a model of the hub; or a run of another kind.
    """
    named = (each for each in run.references if each.of_run)
    return [_of_family(_resolve(each, run), run) for each in named]


def _of_family(source: Source, run: Run) -> Source:
    """Weights come from a run on a backbone of the same kind."""
    own = {BACKBONE: run.config["backbone"]}
    own |= {f"{key}.{words}": node for key, nodes in run.backbones.items() for words, node in nodes.items()}
    config = source.config
    if config is None or source.name not in own or without_data(config):  # merged files have the families of theirs
        return source
    backbone, other = own[source.name], config["backbone"]
    if other["family"] != backbone["family"]:
        raise UserError(
            f"Weights for backbone={backbone['name']} (family {backbone['family']}) cannot come from a run on "
            f"backbone={other['name']} (family {other['family']}).",
            where=source.where,
            remedy="use one backbone in both",
        )
    return source


def _resolve(reference: Reference, run: Run) -> Source:
    name, words, below = reference.name, reference.words, run.sources.get(reference.name)
    if reference.is_words:
        assert below is not None, f"{reference.key} was not composed"
        return Source(reference, below.below(run))
    place = user_path(words, f"{reference.key}: {words}")
    if place.is_dir():
        return Source(reference, below, folder=_checked(reference, place))
    if reference.is_identity:
        found = reference.finished(run.config["output_dir"])
        if len(found) == 1:
            return Source(reference, folder=found[0])
        what = "No finished run has" if not found else f"{len(found)} runs have"
        raise UserError(
            f"{what} the identity {words}.", where=f"{reference.key}: {words}", remedy="give the run's words or folder"
        )
    if words.startswith(HUB) or is_hub_name(words):
        return Source(reference, hub=words.removeprefix(HUB))
    beside = [str(path) for path in place.parent.glob("*") if path.is_dir()]
    raise UserError(
        f"The source {name!r} is a file, not a folder."
        if place.is_file()
        else f"The source {name!r} is neither a run's words, nor an identity, nor a folder: {words!r}.",
        where=f"{reference.key}: {words}",
        nearest=nearest_names(words, beside),
        remedy='write for example sources.teacher="method=full dataset=glue/rte", a folder that exists, or hub:NAME',
    )


def _checked(reference: Reference, folder: Path) -> Path:
    """A run's folder must hold a finished run (of any kind); any other folder must hold weights."""
    if is_run(folder):
        if read_result(folder) is not None:
            return folder
        raise UserError(
            f"The source {reference.name!r} is a run that has not finished.",
            where=f"{reference.key}: {folder}",
            remedy="let it finish, or give its words instead of its folder",
        )
    if not any(any(folder.rglob(kind)) for kind in ("*.safetensors", "pytorch_model*.bin")):
        raise UserError(
            f"The source {reference.name!r} is a folder without weights.",
            where=f"{reference.key}: {folder}",
            remedy="name a run's folder, or one that holds .safetensors files",
        )
    return folder


def refuse_cycle(source: Source, chain: tuple[str, ...]) -> None:
    """UserError where the run that asks for this source is needed for it, too.

    Args:
        chain: identities of the runs that wait.
    """
    if source.to_carry_out is not None and source.to_carry_out.identity in chain:
        raise UserError(
            f"The source {source.name!r} needs the run that asks for it: a circle.",
            where=source.where,
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
            where=source.where,
            remedy=f"fetch it where there is a network (hf download {name}), or name a folder or a run's words",
        ) from error


def source_tree(run: Run, source: Source | None = None, chain: tuple[str, ...] = ()) -> Tree:
    """The run and all below it, with what is finished; carries out nothing."""
    tree = Tree(source, run, run.folder, read_result(run.folder) is not None)
    chain = (*chain, run.identity)
    sources = sources_of(run)
    check_sources(run, sources)
    for each in sources:
        refuse_cycle(each, chain)
        if each.to_carry_out is not None:
            with naming(each.reference):
                tree.sources.append(source_tree(each.to_carry_out, each, chain))
        elif each.folder is not None:
            tree.sources.append(Tree(each, None, each.folder, True))
        else:
            tree.sources.append(Tree(each, None, *_on_this_machine(each)))
    return tree


def _on_this_machine(source: Source) -> tuple[Path, bool]:
    """Where a model of the hub is cached, or its name; and whether it is."""
    from transfer_run.backbones.weights.hub import cached_weights

    name, _, revision = str(source.hub).partition("@")
    folder = cached_weights(name, revision or None)
    return folder or Path(name), folder is not None


def read_back(run: Run, sources: Mapping[str, Path]) -> dict[str, Any]:
    """The run's config with the folders and files of what its sources made where its keys name those runs.

    Raises:
        UserError: a source has not made what it was to make.
    """
    config: dict[str, Any] = copy.deepcopy(dict(run.config))
    for each in run.references:
        if each.of_run and each.name in sources and (each.key_path[0] in ("dataset", "method") or _of_data(each)):
            *parents, leaf = each.key_path
            node = reduce(dict.__getitem__, parents, config)
            node[leaf] = str(made(sources[each.name]).path(sources[each.name]))
    return config


def config_with_data(folder: Path) -> dict[str, Any]:
    """The config of a finished run, whose data can be opened again: `config.yaml` keeps `dataset.path=run:WORDS`.

    Raises:
        UserError: the run that made the data is not there any more.
    """
    config = read_config(folder)
    if not any(map(_of_data, references(config, {}, [Path(each) for each in config.get("search_path") or ()]))):
        return config
    run, there = saved(folder), {}
    for each in filter(_of_data, run.references):
        source = _resolve(each, run)
        there[each.name] = source.folder or source.to_carry_out.folder  # type: ignore[union-attr]
        if read_result(there[each.name]) is None:
            raise UserError(
                f"The run that made {each.key} of {folder.name} is not there any more.",
                where=f"{folder}: {each.key}: {each.words}",
                remedy="carry it out again: transfer-run and these words",
            )
    return read_back(run, there)


def _of_data(reference: Reference) -> bool:
    """Does it name what the data are read with or of?"""
    return reference.of_run and (reference.key_path[0] == "dataset" or reference.name == TOKENIZER)

"""The finished model behind a source: of a run of ours, of an exported folder, or of a plain library folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfer_run.backbones.declared import family_of
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.weights.checkpoints import refuse_not_finite
from transfer_run.backbones.weights.folders import folder_backbone, folder_head
from transfer_run.data.load import build_task
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.compatibility import phrase, reads
from transfer_run.experiment.config.compose import make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.sources.resolve import fetched, sources_of
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method, on_meta
from transfer_run.methods.classifier import refuse_other_names
from transfer_run.run_folder import has_model, is_run, model_folder, read_description
from transfer_run.task import Task


def source_model(name: str, sources: Mapping[str, Path], config: Mapping[str, Any], task: Task) -> Method:
    """The model of the source `name`, complete and in eval mode, on the CPU.

    Args:
        config: the asking run's config; a plain folder must read what its data are, and have a head for its `task`.

    Raises:
        UserError: no such source, or it holds no model that the run can use.
    """
    if name not in sources:
        raise _missing(name, list(sources))
    folder = model_folder(sources[name])
    if has_model(folder):
        return load_model(folder)
    if is_run(sources[name]):
        raise UserError(
            f"The source {name!r} is a run that made no model (a ranking, a data set or merged files).",
            where=f"sources.{name}: {sources[name]}",
            remedy="name a run that trains a model",
        )
    return _library_model(name, folder, config, task)


def _library_model(name: str, folder: Path, config: Mapping[str, Any], task: Task) -> Method:
    node = folder_backbone(folder)
    kind = reads(config["dataset"])
    if kind not in family_of(node).reads:
        raise UserError(
            f"The source {name!r} does not read {phrase(kind)}, which the run's data are.",
            where=f"sources.{name}: {folder} (family {node['family']})",
            remedy="name a model that reads the same data",
        )
    method = Method(build_backbone(node), task)
    head = method.backbone.head
    if any(True for _ in head.parameters()):
        found = folder_head(folder, method.backbone.feature_width) if isinstance(head, nn.Linear) else None
        if found is None or len(found[0]) != task.num_labels:
            has = "no linear classifier" if found is None else f"a classifier of {len(found[0])} classes"
            raise UserError(
                f"The source {name!r} has {has}, the run's task has {task.num_labels} outputs.",
                where=f"sources.{name}: {folder}",
                remedy="name a run on this dataset, or a folder with a head for it (export writes one)",
            )
        refuse_other_names(method.backbone.source_labels, task, f"sources.{name}: {folder}")
        with torch.no_grad():
            state = head.state_dict()
            state["weight"].copy_(found[0])
            state["bias"].copy_(torch.zeros(task.num_labels) if found[1] is None else found[1])
    refuse_not_finite(dict(method.named_parameters()), folder)
    return method.requires_grad_(False).eval()


def source_on_meta(name: str, run: Run, task: Task) -> Method:
    """The same model for a plan: its shapes on the meta device, whether the run has been carried out or not.

    Raises:
        UserError: as `source_model`; a plain folder of the hub that is not on this machine cannot be planned.
    """
    sources = {source.name: source for source in sources_of(run)}
    if name not in sources:
        raise _missing(name, list(sources))
    source = sources[name]
    if source.to_carry_out is None:
        folder = source.folder or fetched(source)
        model = model_folder(folder)
        if not has_model(model) or read_description(model).get("library"):
            return source_model(name, {name: folder}, run.config, task).to("meta")
        content = read_description(model)
        node, settings, task = content["backbone"], content["method"], Task.from_json(content["task"])
    else:
        config = source.to_carry_out.config
        node, settings = config["backbone"], config["method"]
        task = build_task(config["dataset"], node)
    method = build_method(settings, build_backbone(node, weights=False, device="meta"), task)
    method.settle()
    return method.requires_grad_(False).eval()


def check_on_meta(run: Run) -> None:
    """Build the run's method and let it look at its sources, of which only shapes and tasks are known.

    Raises:
        UserError: it refuses its own settings, or one of its sources. What cannot be known without data or weights is
            left to the run itself.
    """
    config = run.config
    if not run.has_data:
        return
    make_importable(run)
    try:
        task = build_task(config["dataset"], config["backbone"])
    except UserError:
        return  # classes that only the data can name

    def build() -> None:
        backbone = build_backbone(config["backbone"], weights=False, device="meta")
        method = build_method(config["method"], backbone, task)
        method.take_sources(lambda name: source_on_meta(name, run, task))

    with torch.random.fork_rng(devices=[]), contextlib.suppress(RuntimeError, NotImplementedError):
        on_meta(build)


def _missing(name: str, known: Sequence[str]) -> UserError:
    return UserError(
        f"The run needs a source {name!r}.",
        where=f"sources.{name}",
        nearest=[f"sources.{near}" for near in nearest_names(name, known)],
        remedy=f'sources.{name}="method=full dataset=..." (a run\'s words), or the folder of a model',
    )

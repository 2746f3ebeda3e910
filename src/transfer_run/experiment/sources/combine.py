"""Runs with `dataset=none`: checkpoints are merged as files, or finished runs on the data that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import check_fit
from transfer_run.experiment.config.compose import make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.models.model_files import backbone_config
from transfer_run.experiment.record.log import LOG, environment
from transfer_run.experiment.sources.resolve import config_with_data, sources_of
from transfer_run.files import write_json
from transfer_run.memory.account import KINDS, MemoryReport, PhasePeak
from transfer_run.memory.meters import PREPARE
from transfer_run.memory.report import amount
from transfer_run.methods.base import Context
from transfer_run.methods.build import method_class, method_settings
from transfer_run.run_folder import RESULT, has_model, is_run, model_folder, read_description


class NotPlanned(UserError):
    """The run can be carried out, but what it takes is not known before."""


def on_first_source(run: Run, sources: Mapping[str, Path]) -> Run | None:
    """The run with backbone, weights and dataset of its first source that is a run; None where none is.

    Raises:
        UserError: the method is not defined on that backbone.
    """
    runs = [folder for folder in sources.values() if is_run(folder) and has_model(model_folder(folder))]
    if not runs:
        return None
    return _on(run, config_with_data(runs[0])["dataset"], backbone_config(read_description(model_folder(runs[0]))))


def _on(run: Run, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Run:
    there = replace(run, config={**run.config, "dataset": dataset, "backbone": backbone})
    check_fit(there.config, there.search_path)
    return there


def planned_on_first_source(run: Run) -> Run | None:
    """The same for a plan: of the first source that is a run, whether it has been carried out or not."""
    for source in sources_of(run):
        if (first := source.to_carry_out) is not None and first.has_data:
            return _on(run, first.config["dataset"], first.config["backbone"])
        if source.folder is not None and (found := on_first_source(run, {source.name: source.folder})) is not None:
            return found
    return None


def memory_of_files(run: Run) -> tuple[dict[str, Any], list[str]]:
    """What a merge of files takes at most (`memory` as in `result.json`), and that in words.

    Raises:
        NotPlanned: it does not work piece by piece.
        UserError: the method does not merge files, or the files that are there do not fit.
    """
    config = run.config
    make_importable(run)
    method = _of_files(config)
    unseen = _check_files(method, run)
    found = method.memory_of_files(len(config["sources"]))
    if found is None:
        raise NotPlanned(
            f"What method={run.chosen('method')} takes to merge files depends on their largest layers.",
            where="dataset=none",
            remedy="carry it out: its result says what was measured",
        )
    size, pieces = found
    kinds = dict.fromkeys(KINDS, 0) | {"other": size}
    memory = MemoryReport(size, PREPARE, "", kinds, {PREPARE: PhasePeak(size, "", kinds)}).as_dict("plan")
    line = f"{pieces}, on the CPU: at most {amount(size)} are in memory at once, whatever the models' size."
    return {**memory, "predicted_peak": size}, [line, *unseen]


def _check_files(method: Any, run: Run) -> list[str]:
    """Let the method look at the names and shapes of what is there; what was not looked at, in a line."""
    sources = sources_of(run)
    absent = [source.where for source in sources if source.folder is None]
    if absent:
        return [f"{', '.join(absent)}: not here yet, so whether the files fit each other was not looked at."]
    folders = {source.name: source.folder for source in sources if source.folder is not None}
    unseen = method.check_files(Context(run.config["seed"], run.folder, _no_batches, folders, _silent))
    return [] if unseen is None else [f"{unseen}."]


def _of_files(config: Mapping[str, Any]) -> Any:
    """The method without backbone and task."""
    return method_class(config["method"]["about"]["target"])(None, None, **method_settings(config["method"]))  # type: ignore[arg-type]


def combine_files(run: Run, folder: Path, sources: dict[str, Path]) -> None:
    """Carry out a run that has neither backbone nor data, and record it.

    Raises:
        UserError: the method needs them.
    """
    from transfer_run.memory.callback import MemoryCallback  # with lightning, which no plan waits for

    config = run.config
    make_importable(run)
    method = _of_files(config)
    context = Context(config["seed"], folder, _no_batches, sources, partial(LOG.info, "%s"))
    memory = MemoryCallback(0) if config["profiler"]["memory"] else None
    with memory.preparing(method, torch.device("cpu")) if memory else nullcontext():
        method.prepare(context)
    extra = method.conclude(context)
    write_json(
        folder / RESULT,
        {
            "schema": 1,
            "status": "finished",
            "identity": run.identity,
            **{group: run.chosen(group) for group in ("method", "backbone", "dataset")},
            "seed": config["seed"],
            "metrics": {},
            "parameters": {"total": method.merged_parameters(), "trainable": 0, "trainable_pct": 0.0},
            "memory": {**memory.result(), "predicted_peak": _predicted(run)} if memory else {},
            "time": {"fit_seconds": 0.0, "samples_per_second": 0.0, "steps": 0, "epochs": 0},
            "environment": environment(),
            "extra": extra,
        },
    )


def _predicted(run: Run) -> int | None:
    try:
        return int(memory_of_files(run)[0]["peak"])
    except NotPlanned:
        return None


def _silent(line: str) -> None:
    """A plan's context: the run's log is not written."""


def _no_batches(split: str, batch_size: int) -> NoReturn:
    raise UserError("There is no data set.", where="dataset=none", remedy="choose one (transfer-list datasets)")

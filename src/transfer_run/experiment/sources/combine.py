"""Runs with `dataset=none`: checkpoints are merged as files, or finished runs on the data that they were trained on."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import check_fit, without_data
from transfer_run.experiment.config.compose import make_importable
from transfer_run.experiment.config.identity import identity
from transfer_run.experiment.models.model_files import backbone_config
from transfer_run.experiment.record.log import LOG, environment
from transfer_run.experiment.sources.resolve import sources_of
from transfer_run.files import write_json
from transfer_run.memory.account import KINDS, MemoryReport, PhasePeak
from transfer_run.memory.meters import PREPARE
from transfer_run.memory.report import amount
from transfer_run.methods.base import Context
from transfer_run.methods.build import method_class, method_settings
from transfer_run.run_folder import CONFIG, RESULT, has_model, is_run, model_folder, read_description


def on_first_source(cfg: DictConfig, sources: dict[str, Path]) -> DictConfig | None:
    """The run with backbone, weights and dataset of its first source that is a run; None where none is.

    Raises:
        UserError: the method is not defined on that backbone.
    """
    runs = [folder for folder in sources.values() if is_run(folder) and has_model(model_folder(folder))]
    if not runs:
        return None
    first = OmegaConf.load(runs[0] / CONFIG)
    return _on(cfg, first.dataset, backbone_config(read_description(model_folder(runs[0]))))


def _on(cfg: DictConfig, dataset: Any, backbone: dict[str, Any]) -> DictConfig:
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    values |= {"dataset": OmegaConf.to_container(dataset, resolve=True), "backbone": backbone}
    check_fit(values, [Path(folder) for folder in values["search_path"]])
    return OmegaConf.create(values)


def planned_on_first_source(cfg: DictConfig) -> DictConfig | None:
    """The same for a plan: of the first source that is a run, whether it has been carried out or not."""
    for source in sources_of(cfg):
        if source.cfg is not None and not without_data(source.cfg):
            return _on(cfg, source.cfg.dataset, OmegaConf.to_container(source.cfg.backbone, resolve=True))  # type: ignore[arg-type]
        if source.folder is not None and (found := on_first_source(cfg, {source.name: source.folder})) is not None:
            return found
    return None


def memory_of_files(cfg: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """What a merge of files takes at most (`memory` as in `result.json`), and that in words.

    Raises:
        UserError: the method does not merge files, or not piece by piece.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    make_importable(cfg)
    method, models = _of_files(config), len(config["method"].get("models") or ()) + len(config["sources"])
    size = method.bytes_for_files(models)
    if size is None:
        raise UserError(
            f"What method={cfg.method.name} takes to merge files depends on their largest layers.",
            where="dataset=none",
            remedy="carry it out: its result says what was measured",
        )
    kinds = dict.fromkeys(KINDS, 0) | {"other": size}
    memory = MemoryReport(size, PREPARE, "", kinds, {PREPARE: PhasePeak(size, "", kinds)}).as_dict("plan")
    line = (
        f"{models} checkpoints are merged as files, on the CPU: at most {amount(size)} of their pieces "
        f"(method.chunk_bytes={config['method']['chunk_bytes']:.0f}) are in memory at once, whatever the models' size."
    )
    return {**memory, "predicted_peak": size}, [line]


def _of_files(config: dict[str, Any]) -> Any:
    """The method without backbone and task."""
    if config["method"]["about"]["shape"] != "combine":
        raise UserError(
            f"method={config['method']['name']} needs a data set.",
            where="dataset=none",
            remedy="choose one (transfer-list datasets); only merging works on checkpoints alone",
        )
    return method_class(config["method"]["about"]["target"])(None, None, **method_settings(config["method"]))  # type: ignore[arg-type]


def combine_files(cfg: DictConfig, folder: Path, sources: dict[str, Path]) -> None:
    """Carry out a run that has neither backbone nor data, and record it.

    Raises:
        UserError: the method needs them.
    """
    from transfer_run.memory.callback import MemoryCallback  # with lightning, which no plan waits for

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    make_importable(cfg)
    method = _of_files(config)
    context = Context(cfg.seed, folder, _no_batches, sources, partial(LOG.info, "%s"))
    memory = MemoryCallback(0) if config["profiler"]["memory"] else None
    with memory.preparing(method, torch.device("cpu")) if memory else nullcontext():
        method.prepare(context)
    extra = method.conclude(context)
    write_json(
        folder / RESULT,
        {
            "schema": 1,
            "status": "finished",
            "identity": identity(cfg),
            "method": cfg.method.name,
            "backbone": cfg.backbone.name,
            "dataset": cfg.dataset.name,
            "seed": cfg.seed,
            "metrics": {},
            "parameters": {"total": extra["merge"]["parameters"], "trainable": 0, "trainable_pct": 0.0},
            "memory": {**memory.result(), "predicted_peak": _predicted(cfg)} if memory else {},
            "time": {"fit_seconds": 0.0, "samples_per_second": 0.0, "steps": 0, "epochs": 0},
            "environment": environment(),
            "extra": extra,
        },
    )


def _predicted(cfg: DictConfig) -> int | None:
    try:
        return int(memory_of_files(cfg)[0]["peak"])
    except UserError:
        return None


def _no_batches(split: str, batch_size: int) -> NoReturn:
    raise UserError("There is no data set.", where="dataset=none", remedy="choose one (transfer-list datasets)")

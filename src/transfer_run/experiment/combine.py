"""Runs with `dataset=none`: checkpoints are merged as files, or finished runs on the data that they were trained on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.compose import make_importable
from transfer_run.experiment.fit import check_fit
from transfer_run.experiment.identity import identity
from transfer_run.experiment.record import LOG, environment, write_json
from transfer_run.experiment.saved import backbone_config, read_description
from transfer_run.experiment.sources import model_folder
from transfer_run.methods.base import Context
from transfer_run.methods.build import method_class, method_settings


def on_first_source(cfg: DictConfig, sources: dict[str, Path]) -> DictConfig | None:
    """The run with backbone, weights and dataset of its first source that is a run; None where none is.

    Raises:
        UserError: the method is not defined on that backbone.
    """
    runs = [folder for folder in sources.values() if (model_folder(folder) / "model.json").is_file()]
    runs = [folder for folder in runs if (folder / "config.yaml").is_file()]
    if not runs:
        return None
    first = OmegaConf.load(runs[0] / "config.yaml")
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    values["dataset"] = OmegaConf.to_container(first.dataset, resolve=True)
    values["backbone"] = backbone_config(read_description(model_folder(runs[0])))
    check_fit(values, [Path(folder) for folder in values["search_path"]])
    return OmegaConf.create(values)


def combine_files(cfg: DictConfig, folder: Path, sources: dict[str, Path]) -> None:
    """Carry out a run that has neither backbone nor data, and record it.

    Raises:
        UserError: the method needs them.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    make_importable(cfg)
    if config["method"]["about"]["shape"] != "combine":
        raise UserError(
            f"method={cfg.method.name} needs a data set.",
            where="dataset=none",
            remedy="choose one (transfer-list datasets); only merging works on checkpoints alone",
        )
    method = method_class(config["method"]["about"]["target"])(None, None, **method_settings(config["method"]))  # type: ignore[arg-type]
    context = Context(cfg.seed, folder, _no_batches, sources, partial(LOG.info, "%s"))
    method.prepare(context)
    extra = method.conclude(context)
    write_json(
        folder / "result.json",
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
            "memory": {},
            "time": {"fit_seconds": 0.0, "samples_per_second": 0.0, "steps": 0, "epochs": 0},
            "environment": environment(),
            "extra": extra,
        },
    )


def _no_batches(split: str, batch_size: int) -> NoReturn:
    raise UserError("There is no data set.", where="dataset=none", remedy="choose one (transfer-list datasets)")

"""Loggers beside `metrics.csv`: TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from transfer_run.experiment.config.schema import flatten
from transfer_run.experiment.record.log import LOG
from transfer_run.experiment.record.wandb_access import base_url, is_here, is_reached


def build_loggers(config: Mapping[str, Any], folder: Path) -> list[Logger]:
    """The logger of `config['logger']` (csv: none beside `metrics.csv`); its files stay in the run's folder."""
    settings = config["logger"]
    if settings["name"] == "tensorboard":
        logger: Logger = TensorBoardLogger(str(folder), name="tensorboard", version="")
    elif settings["name"] == "wandb":
        logger = _wandb(settings, folder)
    else:
        return []
    with _same_mode():
        logger.log_hyperparams(flatten(config))
    return [logger]


@contextmanager
def _same_mode() -> Iterator[None]:
    """A logger that begins offline sets WANDB_MODE: the next run of this process would be offline without a word."""
    before = os.environ.get("WANDB_MODE")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("WANDB_MODE", None)
        else:
            os.environ["WANDB_MODE"] = before


def _wandb(settings: Mapping[str, Any], folder: Path) -> WandbLogger:
    """A run of its own, also after another one in this process (a source): wandb would go on writing into that one."""
    import wandb

    if wandb.run is not None:
        wandb.finish()
    offline = is_here(settings)
    if not offline and not is_reached():
        offline = True
        LOG.warning("%s does not answer: Weights & Biases logs into %s/wandb (`wandb sync` later)", base_url(), folder)
    return WandbLogger(
        project=settings["project"],
        entity=settings["entity"],
        name=folder.name,
        id=folder.name,
        save_dir=str(folder),
        offline=offline,
        log_model=False,
        resume=None if offline else "allow",
    )

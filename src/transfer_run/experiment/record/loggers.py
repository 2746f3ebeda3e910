"""Loggers beside `metrics.csv`: TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from transfer_run.experiment.config.schema import flatten


def build_loggers(config: Mapping[str, Any], folder: Path) -> list[Logger]:
    """The logger of `config['logger']` (csv: none beside `metrics.csv`); its files stay in the run's folder."""
    settings = config["logger"]
    if settings["name"] == "tensorboard":
        logger: Logger = TensorBoardLogger(str(folder), name="tensorboard", version="")
    elif settings["name"] == "wandb":
        logger = WandbLogger(
            project=settings["project"],
            entity=settings["entity"],
            name=folder.name,
            id=folder.name,
            save_dir=str(folder),
            offline=settings["offline"],
            log_model=False,
            resume="allow",
        )
    else:
        return []
    logger.log_hyperparams(flatten(config))
    return [logger]

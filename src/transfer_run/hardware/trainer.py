"""The Lightning trainer of a run: devices, strategy, precision."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import nn

from transfer_run.hardware.devices import check_devices, world_size
from transfer_run.hardware.sharded import Sharded


def build_trainer(
    config: Mapping[str, Any],
    folder: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    blocks: Collection[type[nn.Module]] = (),
    own_steps: bool = False,
) -> pl.Trainer:
    """The trainer for `config['hardware']` and `config['trainer']`.

    Args:
        folder: the run's folder; nothing is written elsewhere.
        blocks: the classes of the backbone's blocks, the units that FSDP shards.
        own_steps: the method takes its steps itself; clipping and summing of gradients are then those steps' matter.

    Raises:
        UserError: see `check_devices`.
    """
    hardware, settings = config["hardware"], config["trainer"]
    check_devices(hardware, config.get("backbone") or {})
    trainer = pl.Trainer(
        accelerator=hardware["accelerator"],
        devices=hardware["devices"],
        num_nodes=hardware["nodes"],
        strategy=_strategy(hardware, blocks),
        precision=hardware["precision"],
        deterministic=hardware["deterministic"],
        max_epochs=settings["max_epochs"] if settings["max_steps"] is None else -1,
        max_steps=-1 if settings["max_steps"] is None else settings["max_steps"],
        gradient_clip_val=None if own_steps else settings["gradient_clip"],
        accumulate_grad_batches=1 if own_steps else settings["accumulate"],
        check_val_every_n_epoch=None if settings["validate_steps"] else settings["validate_every"],
        # where steps are counted, `Checkpoints` says behind which batch a validation comes
        val_check_interval=sys.maxsize if settings["validate_steps"] else None,
        log_every_n_steps=settings["log_every"],
        default_root_dir=folder,
        callbacks=callbacks,
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders shard by rank themselves
        plugins=[LightningEnvironment()],  # ours is the only launcher, whatever started it (Slurm, torchrun, MPI)
    )
    trainer._signal_connector = _NoSignals(trainer)
    return trainer


class _NoSignals(_SignalConnector):
    """Signals are answered by who started the trainer: Lightning's own handlers end with exit code 0, submit jobs again
    by themselves, and wait for other processes while they are at it."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False


def _strategy(hardware: Mapping[str, Any], blocks: Collection[type[nn.Module]]) -> Strategy | str:
    """Methods may own parameters that a step does not use (gates of dropped layers), so DDP looks for them."""
    if world_size(hardware) == 1:
        return "auto"
    return Sharded(blocks) if hardware["strategy"] == "fsdp" else DDPStrategy(find_unused_parameters=True)

"""The Lightning trainer of a run: devices, strategy, precision."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import nn

from transfer_run.backbones.storage import QUANTISED
from transfer_run.errors import UserError


def build_trainer(
    config: Mapping[str, Any],
    folder: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    blocks: Collection[type[nn.Module]] = (),
) -> pl.Trainer:
    """The trainer for `config['hardware']` and `config['trainer']`.

    Args:
        folder: the run's folder; nothing is written elsewhere.
        blocks: the classes of the backbone's blocks, the units that FSDP shards.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    hardware, settings = config["hardware"], config["trainer"]
    if hardware["accelerator"] in ("gpu", "cuda") and torch.cuda.device_count() < hardware["devices"]:
        raise UserError(
            f"This machine has {torch.cuda.device_count()} GPUs, and {hardware['devices']} are asked for.",
            where=f"hardware={hardware['name']}",
            remedy="hardware=auto takes what is there, hardware=cpu the CPU; dry_run=true only plans",
        )
    backbone = config.get("backbone") or {}
    if world_size(hardware) > 1 and (backbone.get("offload") or backbone.get("load") in QUANTISED):
        raise UserError(
            "A backbone in 8 or 4 bits, or streamed from CPU memory, is kept for one device.",
            where=f"hardware={hardware['name']}",
            remedy="hardware=1gpu, or a sweep of runs with one device each",
        )
    return pl.Trainer(
        accelerator=hardware["accelerator"],
        devices=hardware["devices"],
        num_nodes=hardware["nodes"],
        strategy=_strategy(hardware, blocks),
        precision=hardware["precision"],
        deterministic=hardware["deterministic"],
        max_epochs=settings["max_epochs"] if settings["max_steps"] is None else -1,
        max_steps=-1 if settings["max_steps"] is None else settings["max_steps"],
        gradient_clip_val=settings["gradient_clip"],
        accumulate_grad_batches=settings["accumulate"],
        check_val_every_n_epoch=settings["validate_every"],
        log_every_n_steps=settings["log_every"],
        default_root_dir=folder,
        callbacks=callbacks,
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders shard by rank themselves
    )


def _strategy(hardware: Mapping[str, Any], blocks: Collection[type[nn.Module]]) -> Strategy | str:
    """Methods may own parameters that a step does not use (gates of dropped layers), so DDP looks for them."""
    if hardware["strategy"] == "fsdp":
        return FSDPStrategy(auto_wrap_policy=set(blocks) or None, use_orig_params=True)
    if world_size(hardware) > 1:
        return DDPStrategy(find_unused_parameters=True)
    return "auto"


def world_size(hardware: Mapping[str, Any]) -> int:
    """Processes that the run takes: devices on this machine times machines."""
    return int(hardware["devices"]) * int(hardware["nodes"])


def device_of(hardware: Mapping[str, Any]) -> torch.device:
    """The device that this process computes on."""
    if hardware["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if hardware["accelerator"] == "mps" and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")

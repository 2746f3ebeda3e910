"""What a machine must have for a run, and where this process computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from transfer_run.backbones.quantised import QUANTISED
from transfer_run.errors import UserError


def check_devices(hardware: Mapping[str, Any], backbone: Mapping[str, Any]) -> None:
    """Refuse what this machine's devices cannot do.

    Raises:
        UserError: more GPUs are asked for than there are, several for a backbone that is kept for one, or a precision
            that sharded parameters do not have here.
    """
    if hardware["accelerator"] in ("gpu", "cuda") and torch.cuda.device_count() < hardware["devices"]:
        raise UserError(
            f"This machine has {torch.cuda.device_count()} GPUs, and {hardware['devices']} are asked for.",
            where=f"hardware={hardware['name']}",
            remedy="hardware=auto takes what is there, hardware=cpu the CPU; dry_run=true only plans",
        )
    sharded = hardware["strategy"] == "fsdp" and world_size(hardware) > 1
    if sharded and hardware["precision"] != "32-true" and device_of(hardware).type == "cpu":
        raise UserError(
            f"Fully sharded training in {hardware['precision']} needs CUDA GPUs: on CPUs it casts weights, not inputs.",
            where=f"hardware={hardware['name']} hardware.strategy=fsdp hardware.precision={hardware['precision']}",
            remedy="hardware.precision=32-true, or hardware.strategy=ddp; transfer-plan plans it anywhere",
        )
    if world_size(hardware) > 1 and (backbone.get("offload") or backbone.get("load") in QUANTISED):
        raise UserError(
            "A backbone in 8 or 4 bits, or streamed from CPU memory, is kept for one device.",
            where=f"hardware={hardware['name']}",
            remedy="hardware=1gpu, or a sweep of runs with one device each",
        )


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

"""Fully sharded training (PyTorch's FSDP): each block of the backbone a unit, and the model whole again afterwards.

fit ──> every process holds its part of each unit ──> whole_again ──> a plain model on every process
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)
from torch.optim import Optimizer


class Sharded(FSDPStrategy):
    """Lightning's, on CPUs too (gloo), which it and PyTorch want to be told.

    Args:
        blocks: the classes of the units.
    """

    def __init__(self, blocks: Collection[type[nn.Module]]) -> None:
        super().__init__(auto_wrap_policy=set(blocks) or None, use_orig_params=True)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        if self.root_device.type != "cpu":
            return super()._setup_model(model)
        return FullyShardedDataParallel(
            model,
            sharding_strategy=self.sharding_strategy,
            mixed_precision=self.mixed_precision_config,
            device_id=self.root_device,
            **self.kwargs,
        )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """All states whole, on the first process.

        PyTorch gathers one state after the other into the same buffer, and "offloaded to the CPU" they are views of it
        where it lies there already: every state would be the last one. Not offloaded they are copied.
        """
        if self.root_device.type != "cpu":
            return super().optimizer_state(optimizer)
        assert self.model is not None
        how = FullStateDictConfig(), FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=True)
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *how):
            states = FullyShardedDataParallel.optim_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer))
            if self.global_rank != 0:
                return {}
            return FullyShardedDataParallel.rekey_optim_state_dict(states, OptimStateKeyType.PARAM_ID, self.model)


def sharded(trainer: pl.Trainer) -> FullyShardedDataParallel | None:
    """The sharded model of a trainer at work; None where each process holds it whole."""
    model: Any = trainer.strategy.model
    return model if isinstance(model, FullyShardedDataParallel) else None


def whole_again(trainer: pl.Trainer, module: nn.Module) -> None:
    """Gather all parameters on the CPU of every process, and take the units apart; all processes call it.

    Args:
        module: what the trainer was given. It is then what it was before, with its trained values.
    """
    root = sharded(trainer)
    if root is None:
        return
    kept: list[tuple[nn.Module, str, Tensor, bool]] = []
    with FullyShardedDataParallel.summon_full_params(root, writeback=False), torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None and not isinstance(owner, FullyShardedDataParallel):
                    kept.append((owner, name, parameter.detach().cpu().clone(), parameter.requires_grad))
    shared: dict[int, nn.Parameter] = {}
    for owner, name, value, trained in kept:
        before = owner._parameters[name]
        owner._parameters[name] = shared.setdefault(id(before), nn.Parameter(value, requires_grad=trained))
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FullyShardedDataParallel):
                setattr(parent, name, child.module)
    trainer.strategy.model = module

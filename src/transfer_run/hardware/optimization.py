"""Optimizers and learning-rate schedules by their config names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from transfer_run.errors import UserError, nearest_names


def build_optimizer(groups: list[dict[str, Any]], config: Mapping[str, Any]) -> Optimizer:
    """The optimizer over the method's parameter groups; frozen parameters never reach it.

    Args:
        groups: `Method.parameter_groups()`; a group's own `lr` and `weight_decay` win over the config's.
        config: the `optimizer` node: `name`, `lr`, `weight_decay`, `no_decay_1d` and what the optimizer takes.

    Raises:
        UserError: no such optimizer.
    """
    name, lr, decay = config["name"], config["lr"], config.get("weight_decay", 0.0)
    if config.get("no_decay_1d", False):
        groups = [part for group in groups for part in _split_1d(group)]
    groups = [group for group in groups if group["params"]]
    makers: dict[str, Callable[[], Optimizer]] = {
        "adamw": lambda: torch.optim.AdamW(
            groups, lr=lr, weight_decay=decay, betas=tuple(config["betas"]), eps=config["eps"]
        ),
        "adam": lambda: torch.optim.Adam(
            groups, lr=lr, weight_decay=decay, betas=tuple(config["betas"]), eps=config["eps"]
        ),
        "sgd": lambda: torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=config["momentum"]),
        "adafactor": lambda: torch.optim.Adafactor(groups, lr=lr, weight_decay=decay),
    }
    if name not in makers:
        raise UserError(
            f"There is no optimizer {name!r}.",
            where="optimizer.name",
            nearest=nearest_names(name, makers) or list(makers),
        )
    return makers[name]()


def _split_1d(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Weight matrices with decay, biases, norms and scalars without."""
    rest = {key: value for key, value in group.items() if key != "params"}
    matrices = [p for p in group["params"] if p.ndim > 1]
    vectors = [p for p in group["params"] if p.ndim <= 1]
    return [{**rest, "params": matrices}, {**rest, "params": vectors, "weight_decay": 0.0}]


def schedule_factor(schedule: str, warmup: float, total: int) -> Callable[[int], float]:
    """The learning rate's factor at step k of `total`: a linear rise, then constant, linear or cosine to zero.

    Args:
        warmup: below 1 a share of `total`, from 1 on a number of steps.
    """
    rise = round(warmup * total) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < rise:
            return step / rise
        done = (step - rise) / max(1, total - rise)
        if schedule == "linear":
            return max(0.0, 1.0 - done)
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor


def build_schedule(optimizer: Optimizer, config: Mapping[str, Any], total: int) -> LambdaLR:
    """The schedule of `config['schedule']` over `total` steps (or epochs, see `optimizer.interval`)."""
    return LambdaLR(optimizer, schedule_factor(config["schedule"], config.get("warmup", 0.0), total))
